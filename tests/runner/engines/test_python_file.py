"""pystr and pytok: real user files in real child processes; what a file gets, what it may yield, how it fails."""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from model_cards.card import ModelCard
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.python_file import make_pystr, make_pytok
from runner.errors import EngineFailed, EngineStartFailed
from runner.types import ChatRequest, SamplingOptions, SamplingParams, TextDelta, TokenDelta, TokenRequest

EXAMPLES = Path(__file__).parents[3] / "examples"
CARD = ModelCard(name="toy", source="toy", path="/models/toy", vocab_size=100, eos_token_ids=(2,), mdcsum="abc")
REQUEST = TokenRequest(
    id="r", token_ids=[5, 6, 7], max_tokens=9, stop_token_ids=(2,), sampling=SamplingParams(temperature=0.5, seed=3)
)


def spec(name: str, path: Path | str) -> EngineSpec:
    options = EngineOptions(start_timeout_s=30, max_restarts=5)
    return EngineSpec(name=name, card=CARD, argument=str(path), options=options, tail=("--mine", "1"), http_port=8080)


async def tokens(path: Path, request: TokenRequest = REQUEST) -> list[TokenDelta]:
    engine = make_pytok(spec("pytok", path))
    try:
        await engine.start()
        async with aclosing(engine.generate(request)) as stream:
            return [delta async for delta in stream]
    finally:
        await engine.close()


async def texts(path: Path, request: ChatRequest) -> list[TextDelta]:
    service = make_pystr(spec("pystr", path))
    try:
        await service.start()
        async with aclosing(service.generate(request)) as stream:
            return [delta async for delta in stream]
    finally:
        await service.close()


def write(folder: Path, body: str, head: str = "") -> Path:
    """A file whose generate has `body` (lines separated by `;;`)."""
    lines = "\n".join("    " + line for line in body.split(";;"))
    path = folder / "engine.py"
    path.write_text(f"{head}\nasync def generate(request):\n{lines}\n")
    return path


def ids_of(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


async def test_the_examples_work() -> None:
    deltas = await tokens(EXAMPLES / "pytok_echo.py")
    assert ids_of(deltas) == [5, 6, 7]
    assert deltas[-1].finish == "stop"
    request = ChatRequest(id="r", messages=[{"role": "user", "content": "hello you"}])
    answer = await texts(EXAMPLES / "pystr_upper.py", request)
    assert "".join(delta.text for delta in answer) == "HELLO YOU "
    assert answer[-1].finish == "stop"
    assert answer[-1].usage is not None
    prompt = await texts(EXAMPLES / "pystr_upper.py", ChatRequest(id="r", prompt="abc"))
    assert "".join(delta.text for delta in prompt) == "ABC "


async def test_what_a_file_gets(tmp_path: Path) -> None:
    """dynamo-run's contract: argv, the module's folder, __name__, the request."""
    (tmp_path / "helper.py").write_text("ANSWER = 42\n")
    seen = tmp_path / "seen.json"
    head = "import sys, json, asyncio, helper\nasyncio.run(asyncio.sleep(0))\nassert __name__ == '__main__'"
    body = f"json.dump([sys.argv, request, helper.ANSWER], open({str(seen)!r}, 'w'));;yield {{'token_ids': [1]}}"
    await tokens(write(tmp_path, body, head))
    argv, request, answer = json.loads(seen.read_text())
    assert answer == 42
    assert argv[0] == "engine.py"
    assert argv[1:] == [
        "--model-path", "/models/toy", "--model-name", "toy", "--http-port", "8080", "--tensor-parallel-size", "1",
        "--base-gpu-id", "0", "--num-nodes", "1", "--node-rank", "0", "--mine", "1",
    ]  # fmt: skip
    assert request["token_ids"] == [5, 6, 7]
    assert request["stop_conditions"]["max_tokens"] == 9
    assert request["stop_conditions"]["stop_token_ids_hidden"] == [2]
    assert request["stop_conditions"]["ignore_eos"] is False
    assert (request["sampling_options"]["temperature"], request["sampling_options"]["seed"]) == (0.5, 3)
    assert (request["eos_token_ids"], request["mdc_sum"], request["model"]) == ([2], "abc", "toy")


async def test_the_openai_request_of_pystr(tmp_path: Path) -> None:
    head = "import json"
    body = "yield {'choices': [{'index': 0, 'delta': {'content': json.dumps(request)}}]}"
    sampling = SamplingOptions(temperature=0.0, top_k=4, logit_bias={7: -1.0})
    request = ChatRequest(
        id="r", messages=[{"role": "user", "content": "x"}], sampling=sampling, max_tokens=5, stop=("a",)
    )
    deltas = await texts(write(tmp_path, body, head), request)
    assert json.loads("".join(delta.text for delta in deltas)) == {
        "model": "toy",
        "stream": True,
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0.0,
        "top_k": 4,
        "logit_bias": {"7": -1.0},
        "max_tokens": 5,
        "stop": ["a"],
    }


@pytest.mark.parametrize(
    ("body", "ids", "finish"),
    [
        ("yield {'token_ids': [4, 5]};;yield {'token_ids': [], 'finish_reason': 'length'}", [4, 5], "length"),
        ("yield {'token_ids': [4], 'finish_reason': 'eos'};;yield {'token_ids': [9]}", [4], "stop"),
        ("yield {'token_ids': [4, 2, 9]}", [4], "stop"),
        ("while True: yield {'token_ids': [4, 5]}", [4, 5, 4, 5, 4, 5, 4, 5, 4], "length"),
        ("if False: yield", [], "stop"),
    ],
    ids=["own reason", "eos", "stop id", "max_tokens", "nothing"],
)
async def test_what_a_pytok_file_may_yield(tmp_path: Path, body: str, ids: list[int], finish: str) -> None:
    deltas = await tokens(write(tmp_path, body))
    assert (ids_of(deltas), deltas[-1].finish) == (ids, finish)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("yield 'hello'", ["'hello' (str)", "allowed is", "token_ids"]),
        ("yield {'token_ids': ['a']}", ["['a']", "allowed is"]),
        ("yield {'token_ids': [100]}", ["100 is no token id of this model (0 to 99)"]),
        ("yield {'token_ids': [1], 'text': 'x'}", ["'text' cannot be given"]),
        ("yield {'token_ids': [1], 'finish_reason': 'tired'}", ["'tired' is no finish reason"]),
        ("yield {'finish_reason': {'error': 'no GPU'}}", ["no GPU"]),
        ("return 5", ["returned 5 (int)", "async generator"]),
        ("yield {'token_ids': [1]};;raise ValueError('my bug')", ["engine.py", "line 4", "ValueError: my bug"]),
    ],
)
async def test_what_a_pytok_file_does_wrong_is_explained(tmp_path: Path, body: str, words: list[str]) -> None:
    with pytest.raises(EngineFailed) as caught:
        await tokens(write(tmp_path, body))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "user_file.py" not in str(caught.value), "our own frames are noise to the user"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("yield {'text': 'x'}", ["allowed is an OpenAI chunk"]),
        ("yield {'choices': [{'delta': {'content': 5}}]}", ["content must be text"]),
        ("yield {'choices': [{'delta': {}, 'finish_reason': 'bored'}]}", ["'bored' is unknown"]),
        ("yield {'choices': [5]}", ["allowed is an OpenAI chunk"]),
    ],
)
async def test_what_a_pystr_file_does_wrong_is_explained(tmp_path: Path, body: str, words: list[str]) -> None:
    with pytest.raises(EngineFailed) as caught:
        await texts(write(tmp_path, body), ChatRequest(id="r", prompt="x"))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def generate(:\n", ["cannot be loaded", "engine.py", "line 1", "SyntaxError"]),
        ("import nonsense_package\n", ["cannot be loaded", "nonsense_package"]),
        ("x = 1\ndef other(): ...\n", ["no `async def generate(request)`", "other"]),
        ("import sys\nsys.exit(3)\n", ["sys.exit(3)"]),
    ],
    ids=["syntax", "import", "no generate", "exit"],
)
async def test_a_file_that_cannot_be_loaded(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "engine.py"
    path.write_text(text)
    with pytest.raises(EngineStartFailed) as caught:
        await tokens(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


async def test_no_such_file() -> None:
    with pytest.raises(EngineStartFailed, match=r"nowhere\.py, which is not there"):
        make_pystr(spec("pystr", "nowhere.py"))
    with pytest.raises(EngineStartFailed, match="needs a Python file"):
        make_pytok(spec("pytok", ""))


async def test_tool_calls_reasoning_choices_and_usage(tmp_path: Path) -> None:
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "reasoning_content": "hm"}}]},
        {"choices": [{"index": 1, "delta": {"content": "one"}, "finish_reason": "length"}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c"}]}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 8}},
    ]
    body = ";;".join(f"yield {chunk!r}" for chunk in chunks)
    deltas = await texts(write(tmp_path, body), ChatRequest(id="r", prompt="x"))
    assert [delta.finish for delta in deltas if delta.finish] == ["tool_calls", "length"]
    assert "".join(delta.reasoning or "" for delta in deltas) == "hm"
    assert [delta.tool_calls for delta in deltas if delta.tool_calls] == [[{"index": 0, "id": "c"}]]
    assert deltas[-1].usage is not None
    assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.completion_tokens) == (7, 8)
