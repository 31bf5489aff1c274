from __future__ import annotations

import asyncio
import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from runner.errors import EngineBusy, EngineDied, EngineFailed, EngineStartFailed, LlmrunError, RequestError, UsageError
from runner.frontends.base import FrontendSpec
from runner.frontends.batch import BatchFrontend, _duration, output_path
from runner.options import RunOptions
from runner.types import ChatRequest, TextDelta, Usage
from tests.runner.fakes import TextService, catalog_of, last_text, shout


def write(path: Path, *lines: Any) -> Path:
    """JSON Lines; bytes and strings as they are."""
    raw = [line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
           for line in lines]  # fmt: skip
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def frontend(path: Path | str, **options: Any) -> BatchFrontend:
    return BatchFrontend(FrontendSpec(name="batch", argument=str(path), options=RunOptions(**options)))


async def run(path: Path, service: TextService | None = None, **options: Any) -> int:
    return await frontend(path, **options).run(catalog_of(service or TextService(shout)))


def openai(custom_id: str, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


HI = [{"role": "user", "content": "hi"}]


async def test_dynamo_runs_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "q.jsonl", {"text": "hi there", "my_id": 7}, "", {"text": "you"})
    assert await run(source) == 0
    first, second = read(tmp_path / "q.output.jsonl")
    assert first.pop("elapsed_ms") >= 0
    assert first == {"text": "hi there", "my_id": 7, "response": "HI THERE", "tokens_in": 3, "tokens_out": 2,
                     "finish_reason": "stop"}  # fmt: skip
    assert second["response"] == "YOU"
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Ran 2 files in " in printed.err
    assert "Tokens in: 6 (" in printed.err and "Tokens out: 3 (" in printed.err
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


async def test_openai_lines(tmp_path: Path) -> None:
    source = write(
        tmp_path / "q.jsonl",
        openai("a", messages=HI, model="toy", max_tokens=5, temperature=0),
        openai("b", "/v1/completions", prompt=["x", "y"], max_tokens=5),
        openai("c", "/v1/embeddings", input=["x", "y"], encoding_format="float"),
        openai("d", "/v1/embeddings", input="x", encoding_format="base64"),
    )
    service = TextService(shout)
    assert await run(source, service) == 0
    a, b, c, d = read(tmp_path / "q.output.jsonl")
    assert [record["custom_id"] for record in (a, b, c, d)] == ["a", "b", "c", "d"]
    assert all(record["response"]["status_code"] == 200 and record["error"] is None for record in (a, b, c, d))
    assert len({record["id"] for record in (a, b, c, d)}) == 4
    assert a["response"]["body"]["choices"][0]["message"]["content"] == "HI"
    assert a["response"]["body"]["usage"]["total_tokens"] == 4
    assert [choice["text"] for choice in b["response"]["body"]["choices"]] == ["X", "Y"]
    assert b["response"]["body"]["usage"]["prompt_tokens"] == 6
    assert [entry["embedding"] for entry in c["response"]["body"]["data"]] == [[1.0], [1.0]]
    assert d["response"]["body"]["data"][0]["embedding"] == "AACAPw=="
    assert struct.unpack("<f", b"\x00\x00\x80\x3f") == (1.0,)
    asked = service.requests[0]
    assert (asked.max_tokens, asked.sampling.temperature) == (5, 0.0)


async def test_output_is_in_input_order_whatever_finishes_first(tmp_path: Path) -> None:
    def slow_first(request: ChatRequest) -> list[Any]:
        return [0.0005 * (7 * int(last_text(request)) % 20), *shout(request)]

    source = write(tmp_path / "q.jsonl", *({"text": str(number)} for number in range(200)))
    service = TextService(slow_first)
    assert await run(source, service, concurrency=16) == 0
    assert [record["response"] for record in read(tmp_path / "q.output.jsonl")] == [str(n) for n in range(200)]
    assert service.most_open == 16


async def test_concurrency_is_twice_what_the_engine_runs(tmp_path: Path) -> None:
    service = TextService(lambda request: [0.002, *shout(request)], max_running=3)
    await run(write(tmp_path / "q.jsonl", *({"text": str(number)} for number in range(40))), service)
    assert service.most_open == 6


async def test_one_slow_line_does_not_let_memory_grow(tmp_path: Path) -> None:
    gate = asyncio.Event()

    class Gated(TextService):
        async def generate(self, request: ChatRequest):  # type: ignore[no-untyped-def]
            self.requests.append(request)
            if last_text(request) == "0":
                await gate.wait()
            yield TextDelta(text="x", finish="stop", usage=Usage(prompt_tokens=1, completion_tokens=1))

    service = Gated(shout)
    source = write(tmp_path / "q.jsonl", *({"text": str(number)} for number in range(500)))
    task = asyncio.create_task(run(source, service, concurrency=2))
    for _ in range(300):
        await asyncio.sleep(0)
    assert len(service.requests) <= 8
    gate.set()
    assert await task == 0
    assert len(read(tmp_path / "q.output.jsonl")) == 500


async def test_every_bad_line_has_its_record_and_the_rest_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: ChatRequest) -> list[Any]:
        return [RequestError("too long", field="messages")] if last_text(request) == "long" else shout(request)

    bad = [
        "{", "[]", "7", '"x"', "{}", '{"text": 7}', '{"text": "\\ud800"}', b'{"text": "\xff"}', '{"text": NaN}',
        {"text": "long"},
        {"custom_id": 7, "method": "POST", "url": "/v1/completions", "body": {}},
        openai("x", "/v1/nothing"),
        {**openai("x", messages=HI), "method": "GET"},
        openai("x", messages=[]),
        openai("x", messages=HI, temperature="hot"),
        openai("x", messages=HI, stream=True),
        openai("x", messages=HI, model="unknown"),
        openai("x", "/v1/embeddings", input="x", dimensions=2),
        "[" * 100_000,
    ]  # fmt: skip
    source = write(tmp_path / "q.jsonl", {"text": "first"}, *bad, "", {"text": "last"})
    assert await run(source, TextService(answer)) == 1
    records = read(tmp_path / "q.output.jsonl")
    assert len(records) == len(bad) + 2
    assert (records[0]["response"], records[-1]["response"]) == ("FIRST", "LAST")
    for number, record in enumerate(records[1:-1], start=2):
        assert record["error"]["line"] == number
        assert f"line {number}: " in record["error"]["message"]
        assert len(record["error"]["message"]) < 600
    by_line = dict(enumerate(records, start=1))
    assert by_line[11]["text"] == "long" and by_line[11]["finish_reason"] == "error" and by_line[11]["response"] == ""
    assert by_line[13]["custom_id"] == "x" and by_line[13]["response"]["status_code"] == 400
    assert by_line[18]["response"]["status_code"] == 404
    assert by_line[18]["response"]["body"]["error"]["message"].startswith("line 18: ")
    assert f"{len(bad)} of {len(bad) + 2} lines failed; the first: line 2: " in capsys.readouterr().err


async def test_bom_and_crlf(tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    assert await run(source) == 0
    assert [record["response"] for record in read(tmp_path / "q.output.jsonl")] == ["A", "B"]


async def test_flags_and_template_fill_what_a_line_leaves_out(tmp_path: Path) -> None:
    template = tmp_path / "template.json"
    template.write_text('{"temperature": 0.3, "max_completion_tokens": 9}')
    source = write(tmp_path / "q.jsonl", {"text": "a"}, openai("x", messages=HI, temperature=0))
    service = TextService(shout)
    await run(source, service, request_template=str(template), system="Be brief.", max_tokens=7, concurrency=1)
    text, chat = service.requests
    assert (text.sampling.temperature, text.max_tokens, chat.sampling.temperature) == (0.3, 7, 0.0)
    assert text.messages is not None and text.messages[0] == {"role": "system", "content": "Be brief."}


# --- engine trouble


async def test_a_busy_engine_is_waited_for_and_a_dead_one_tried_again(tmp_path: Path) -> None:
    trouble: dict[str, list[Exception]] = {
        "busy": [EngineBusy("full", retry_after_s=0.001)] * 20,
        "dead": [EngineDied("gone"), EngineDied("gone")],
    }

    def answer(request: ChatRequest) -> list[Any]:
        errors = trouble.get(last_text(request))
        return [TextDelta(text="half"), errors.pop()] if errors else shout(request)

    source = write(tmp_path / "q.jsonl", {"text": "busy"}, {"text": "dead"})
    assert await run(source, TextService(answer)) == 0
    assert [record["response"] for record in read(tmp_path / "q.output.jsonl")] == ["BUSY", "DEAD"]


async def test_an_engine_that_fails_at_one_line_fails_that_line(tmp_path: Path) -> None:
    def answer(request: ChatRequest) -> list[Any]:
        return [EngineFailed("bad step")] if last_text(request) == "b" else shout(request)

    source = write(tmp_path / "q.jsonl", {"text": "a"}, {"text": "b"}, {"text": "c"}, openai("d", messages=HI))
    assert await run(source, TextService(answer)) == 1
    records = read(tmp_path / "q.output.jsonl")
    assert [record["response"] for record in records[:3]] == ["A", "", "C"]
    assert records[1]["error"]["type"] == "engine_error"


@pytest.mark.parametrize("error", [EngineDied("gone"), EngineStartFailed("no memory")])
async def test_an_engine_that_is_gone_stops_the_run_and_resuming_redoes_the_failures(
    tmp_path: Path, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: ChatRequest) -> list[Any]:
        return shout(request) if int(last_text(request)) < 20 else [error]

    source = write(tmp_path / "q.jsonl", *({"text": str(number)} for number in range(100)))
    with pytest.raises(type(error)):
        await run(source, TextService(answer), concurrency=4)
    assert "--resume continues" in capsys.readouterr().err
    assert not (tmp_path / "q.output.jsonl").exists()
    service = TextService(shout)
    assert await run(source, service, resume=True) == 0
    assert [record["response"] for record in read(tmp_path / "q.output.jsonl")] == [str(n) for n in range(100)]
    assert len(service.requests) == 80


# --- files


async def test_a_killed_run_resumes_where_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "q.jsonl", *({"text": str(number)} for number in range(50)))
    stuck = TextService(lambda request: [None] if last_text(request) == "30" else shout(request))
    task = asyncio.create_task(run(source, stuck, concurrency=4))
    partial = tmp_path / "q.output.jsonl.partial"
    for _ in range(2000):
        await asyncio.sleep(0)
        if partial.exists() and partial.read_bytes().count(b"\n") == 30:
            break
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stuck.num_open == 0
    with partial.open("ab") as file:
        file.write(b'{"text": "30", "respon' + b"s" * 100_000)
    service = TextService(shout)
    assert await run(source, service, resume=True) == 0
    assert [record["response"] for record in read(tmp_path / "q.output.jsonl")] == [str(n) for n in range(50)]
    assert len(service.requests) == 20
    assert await run(source, service, resume=True) == 0, "a finished run has nothing to resume"
    assert len(service.requests) == 20


async def test_ctrl_c_says_how_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "q.jsonl", {"text": "a"}, {"text": "stuck"})
    stuck = TextService(lambda request: [None] if last_text(request) == "stuck" else shout(request))
    task = asyncio.create_task(run(source, stuck))
    while not stuck.requests:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "--resume" in capsys.readouterr().err


async def interrupted(tmp_path: Path, **more: Any) -> Path:
    """A source with one line done of two."""
    source = write(tmp_path / "q.jsonl", {"text": "a"}, {"text": "b"})
    failing = TextService(lambda request: [EngineStartFailed("x")] if last_text(request) == "b" else shout(request))
    with pytest.raises(EngineStartFailed):
        await run(source, failing, concurrency=1, **more)
    assert len(read(tmp_path / "q.output.jsonl.partial")) == 1
    return source


async def test_resuming_refuses_another_input(tmp_path: Path) -> None:
    source = await interrupted(tmp_path)
    write(source, {"text": "a"}, {"text": "changed"})
    with pytest.raises(UsageError, match="another input"):
        await run(source, resume=True)


async def test_resuming_refuses_another_model(tmp_path: Path) -> None:
    source = await interrupted(tmp_path)
    with pytest.raises(UsageError, match="begun with model toy, not with this other"):
        await run(source, TextService(shout, name="other"), resume=True)


async def test_an_unfinished_run_is_not_overwritten(tmp_path: Path) -> None:
    source = await interrupted(tmp_path)
    with pytest.raises(UsageError, match="--resume"):
        frontend(source)


async def test_a_damaged_sidecar_is_an_error(tmp_path: Path) -> None:
    source = await interrupted(tmp_path)
    (tmp_path / "q.output.jsonl.partial.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        await run(source, resume=True)


async def test_resume_without_an_earlier_run_begins(tmp_path: Path) -> None:
    assert await run(write(tmp_path / "q.jsonl", {"text": "a"}), resume=True) == 0


async def test_an_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path / "q.jsonl", {"text": "a"})
    (tmp_path / "q.output.jsonl").write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        frontend(source)
    assert await run(source, output=str(tmp_path / "other.jsonl")) == 0
    assert len(read(tmp_path / "other.jsonl")) == 1


async def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    source = await interrupted(tmp_path)
    stuck = TextService(lambda request: [None])
    first = asyncio.create_task(run(source, stuck, resume=True))
    while not stuck.requests:  # noqa: ASYNC110
        await asyncio.sleep(0)
    with pytest.raises(UsageError, match="another run"):
        await run(source, resume=True)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


def test_wrong_files_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing or not a file"):
        frontend(tmp_path / "nothing.jsonl")
    with pytest.raises(UsageError, match="missing or not a file"):
        frontend(tmp_path)
    with pytest.raises(UsageError, match="needs a file"):
        frontend("")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UsageError, match="empty"):
        frontend(tmp_path / "empty.jsonl")
    source = write(tmp_path / "q.jsonl", {"text": "a"})
    with pytest.raises(UsageError, match="is the input"):
        frontend(source, output=str(source))
    with pytest.raises(UsageError, match="no folder"):
        frontend(source, output=str(tmp_path / "no" / "o.jsonl"))
    with pytest.raises(UsageError, match="leave out PROMPT"):
        BatchFrontend(FrontendSpec(name="batch", argument=str(source), prompt="hi"))


async def test_a_file_of_blank_lines_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text("\n  \n\n")
    with pytest.raises(UsageError, match="no lines"):
        await run(source)
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


async def test_an_output_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **more: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    source = write(tmp_path / "q.jsonl", {"text": "a"})
    made = frontend(source)
    with monkeypatch.context() as patch:
        patch.setattr("runner.frontends.batch_output.os.open", refuse)
        with pytest.raises(UsageError, match="Permission denied"):
            await made.run(catalog_of(TextService(shout)))


async def test_a_full_disk_keeps_what_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "q.jsonl", *({"text": str(number)} for number in range(50)))
    room = 1000
    real_write = os.write

    def write_some(fd: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(fd, data[:room])
        room -= written
        return written

    service = TextService(shout)
    with monkeypatch.context() as patch:
        patch.setattr("runner.frontends.batch_output.os.write", write_some)
        with pytest.raises(LlmrunError, match=r"No space left on device; \d+ lines are complete .* --resume") as caught:
            await run(source, service)
    assert not isinstance(caught.value, UsageError), "exit code 1"
    assert service.num_open == 0
    assert not (tmp_path / "q.output.jsonl").exists()
    assert await run(source, resume=True) == 0
    assert [record["response"] for record in read(tmp_path / "q.output.jsonl")] == [str(n) for n in range(50)]


def test_names_and_times() -> None:
    assert output_path(Path("a/prompts.jsonl")) == Path("a/prompts.output.jsonl")
    assert output_path(Path("a/prompts.txt")) == Path("a/prompts.txt.output.jsonl")
    assert [_duration(s) for s in (8.679, 62.005, 3600, 0.0001)] == ["8s 679ms", "1m 2s 5ms", "1h", "0ms"]
