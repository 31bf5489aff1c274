"""in=batch with input that is wrong and output that cannot be written: every line has its record, nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.program import FAILURE, USAGE, Program

pytestmark = pytest.mark.timeout(300)
ENGINE = "out=echo_core"


def write_prompts(path: Path, count: int, text: str = "hello") -> Path:
    """`count` good lines."""
    path.write_text("".join(json.dumps({"text": f"{text} {number}"}) + "\n" for number in range(count)))
    return path


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of an output, each of which must be whole."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_missing_file(llmrun: Program, toy: Path, tmp_path: Path) -> None:
    llmrun(f"in=batch:{tmp_path}/none.jsonl", ENGINE, toy).failed(USAGE, "missing or not a file", "none.jsonl")


def test_a_folder_for_a_file(llmrun: Program, toy: Path, tmp_path: Path) -> None:
    llmrun(f"in=batch:{tmp_path}", ENGINE, toy).failed(USAGE, "missing or not a file", "JSON Lines file")


def test_a_name_that_cannot_be(llmrun: Program, toy: Path) -> None:
    llmrun(f"in=batch:{'x' * 300}", ENGINE, toy).failed(USAGE, "cannot be read: File name too long")


def test_no_file_at_all(llmrun: Program, toy: Path) -> None:
    llmrun("in=batch", ENGINE, toy).failed(USAGE, "in=batch:FILE.jsonl")


@pytest.mark.parametrize("content", ["", "\n \n\n"])
def test_an_empty_file(llmrun: Program, toy: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.jsonl").write_text(content)
    llmrun(f"in=batch:{tmp_path}/empty.jsonl", ENGINE, toy).failed(USAGE, "empty.jsonl", "nothing to do")
    assert [file.name for file in tmp_path.iterdir()] == ["empty.jsonl"]


BAD_LINES: list[tuple[bytes, str]] = [
    (b"nonsense", "not valid JSON"),
    (b'{"text": "cut of', "not valid JSON"),
    (b"[1, 2]", "must be a JSON object"),
    (b"\xff\xfe\x00", "not valid JSON"),
    (b'{"text": 3}', "no string under the key text"),
    (b'{"prompt": "hi"}', 'a line is {"text"'),
    (b'{"text": "\\ud800"}', "surrogate"),
    (b'{"text": "' + b"very long " * 20_000 + b'"}', "the context is 256"),
    (b'{"custom_id": "a", "method": "GET", "url": "/v1/chat/completions", "body": {}}', "allowed: POST"),
    (b'{"custom_id": "b", "method": "POST", "url": "/v1/images", "body": {}}', "/v1/images"),
    (b'{"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}', "is empty"),
    (b'{"custom_id": "d", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "n": -1}}', "n: got -1"),
    (b"[" * 100_000, "nested too deep"),
]


def test_bad_lines_have_their_records_and_the_good_ones_their_answers(
    llmrun: Program, toy: Path, tmp_path: Path
) -> None:
    source = tmp_path / "mixed.jsonl"
    good = b'{"text": "good"}'
    source.write_bytes(b"\n".join(line for bad, _ in BAD_LINES for line in (good, bad)) + b"\n" + good)
    done = llmrun(f"in=batch:{source}", ENGINE, toy)
    assert done.code == FAILURE and done.out == "", done
    assert f"{len(BAD_LINES)} of {2 * len(BAD_LINES) + 1} lines failed; the first: line 2: " in done.err
    written = records(tmp_path / "mixed.output.jsonl")
    assert len(written) == 2 * len(BAD_LINES) + 1
    assert all(record["response"] and "error" not in record for record in written[::2])
    for place, (record, (_, telling)) in enumerate(zip(written[1::2], BAD_LINES, strict=True)):
        number = 2 * place + 2
        assert record["error"]["message"].startswith(f"line {number}: "), record
        assert telling in record["error"]["message"] and record["error"]["line"] == number, record


def test_outputs_that_cannot_be(llmrun: Program, toy: Path, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "q.jsonl", 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "theirs").write_text("precious")
    batch = f"in=batch:{source}"
    llmrun(batch, ENGINE, toy, "-o", tmp_path / "no" / "a").failed(USAGE, "no folder", "choose another --output")
    llmrun(batch, ENGINE, toy, "-o", tmp_path / "folder").failed(USAGE, "exists already", "choose another --output")
    llmrun(batch, ENGINE, toy, "-o", tmp_path / "theirs").failed(USAGE, "exists already", "remove it")
    llmrun(batch, ENGINE, toy, "-o", source).failed(USAGE, "--output is the input")
    llmrun(batch, ENGINE, toy, "-o", source / "a").failed(USAGE, "no folder")
    llmrun(batch, ENGINE, toy, "-o", "x" * 300).failed(USAGE, "File name too long", "choose another --output")
    assert (tmp_path / "theirs").read_text() == "precious"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_an_output_where_nobody_may_write(llmrun: Program, toy: Path, tmp_path: Path) -> None:
    """/proc refuses new files also to root."""
    source = write_prompts(tmp_path / "q.jsonl", 1)
    done = llmrun(f"in=batch:{source}", ENGINE, toy, "-o", "/proc/answers.jsonl")
    done.failed(USAGE, "/proc/answers.jsonl.partial cannot be written", "choose another --output")


def test_a_full_disk_keeps_what_is_complete_and_resumes(llmrun: Program, toy: Path, tmp_path: Path) -> None:
    """A limit on the size of files stops the output in the middle of a line, as a full disk does."""
    source, limit = write_prompts(tmp_path / "q.jsonl", 60), 4000

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = llmrun(f"in=batch:{source}", ENGINE, toy, preexec_fn=limit_files)
    done.failed(FAILURE, "q.output.jsonl.partial: File too large", "lines are complete in it", "continue with --resume")
    assert not (tmp_path / "q.output.jsonl").exists()
    _finish_by_resuming(llmrun, toy, source)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; skips where mounting is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
def test_a_disk_that_is_really_full(llmrun: Program, toy: Path, tmp_path: Path, small_disk: Path) -> None:
    source, filler = write_prompts(tmp_path / "q.jsonl", 200), small_disk / "filler"
    filler.write_bytes(bytes(40_960))
    output = small_disk / "q.output.jsonl"
    done = llmrun(f"in=batch:{source}", ENGINE, toy, "-o", output)
    done.failed(FAILURE, "No space left on device", "lines are complete in it", "continue with --resume")
    filler.unlink()
    _finish_by_resuming(llmrun, toy, source, "-o", str(output), output=output)


def _finish_by_resuming(llmrun: Program, toy: Path, source: Path, *words: str, output: Path | None = None) -> None:
    done = llmrun(f"in=batch:{source}", ENGINE, toy, "--resume", *words)
    assert done.code == 0 and "resuming after " in done.err, done
    output = output or source.with_name("q.output.jsonl")
    asked = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    assert [record["text"] for record in records(output)] == asked
    assert all(record["finish_reason"] == "stop" for record in records(output))
