"""TextDeltas -> OpenAI objects and SSE bytes; the hand-built path must say what the general one says."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.openai_responses import (
    DONE,
    MIN_LOGPROB,
    ApiKind,
    ChunkWriter,
    Fold,
    error_event,
    error_object,
)
from runner.types import TextDelta, TextLogprob, Usage

USAGE = Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=2)
USAGE_OBJECT = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 2},
}


def logprob(token: str, value: float = -0.5, top: list[TextLogprob] | None = None) -> TextLogprob:
    return TextLogprob(token_id=1, token=token, bytes=list(token.encode()), logprob=value, top=top or [])


def writer(kind: ApiKind = "chat", **options: Any) -> ChunkWriter:
    return ChunkWriter(kind, response_id="id", model='a "model"', created=5, **options)


def fold(kind: ApiKind, *deltas: TextDelta, num_choices: int = 1) -> dict[str, Any]:
    folded = Fold(kind, response_id="id", model="m", num_choices=num_choices, created=5)
    for delta in deltas:
        folded.add(delta)
    return folded.result()


def events(data: bytes) -> list[Any]:
    """The JSON of each event; every event must be `data: {...}` and end with an empty line."""
    *parts, rest = data.split(b"\n\n")
    assert rest == b"" and all(part.startswith(b"data: ") and b"\n" not in part for part in parts)
    return [part[6:].decode() if part == b"data: [DONE]" else json.loads(part[6:]) for part in parts]


def chunk(**choice: Any) -> dict[str, Any]:
    return {
        "id": "id",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": 'a "model"',
        "choices": [{"index": 0, "logprobs": None, "finish_reason": None, **choice}],
    }


def test_a_chat_stream() -> None:
    chunks = writer()
    last = TextDelta(text="b", finish="stop", stop_reason="END", usage=USAGE)
    data = chunks.first() + chunks.chunk(TextDelta(text="a")) + chunks.chunk(last) + chunks.last()
    assert events(data) == [
        chunk(delta={"role": "assistant", "content": ""}),
        chunk(delta={"content": "a"}),
        chunk(delta={"content": "b"}, finish_reason="stop", stop_reason="END"),
        "[DONE]",
    ]


def test_usage_is_null_until_its_own_chunk() -> None:
    chunks = writer(include_usage=True)
    data = chunks.first() + chunks.chunk(TextDelta(text="a")) + chunks.chunk(TextDelta(finish="length", usage=USAGE))
    *others, last, done = events(data + chunks.last())
    assert [one["usage"] for one in others] == [None] * 3
    assert (last["choices"], last["usage"], done) == ([], USAGE_OBJECT, "[DONE]")


def test_a_completion_stream() -> None:
    chunks = writer("completion")
    assert chunks.first() == b""
    (event,) = events(chunks.chunk(TextDelta(text="a")))
    assert event["object"] == "text_completion"
    assert event["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]


def test_usage_of_several_prompts_adds_up() -> None:
    chunks = writer("completion", num_choices=2, include_usage=True)
    for index in range(2):
        chunks.chunk(TextDelta(index=index, text="x", finish="stop", usage=USAGE))
    usage = events(chunks.last())[0]["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (6, 14)


@given(st.text(), st.sampled_from(["chat", "completion"]), st.integers(0, 8), st.booleans())
def test_the_fast_path_says_what_the_general_one_says(text: str, kind: ApiKind, index: int, usage: bool) -> None:
    delta = TextDelta(index=index, text=text)
    fast, general = (writer(kind, num_choices=9, include_usage=usage) for _ in range(2))
    data = fast.chunk(delta)
    assert not text or events(data) == events(general._rare_chunk(delta))


def test_nothing_new_makes_no_event() -> None:
    assert writer().chunk(TextDelta(token_ids=[1])) == b""


def test_warnings_go_out_once() -> None:
    chunks = writer()
    chunks.first(("one",))
    first, second = events(chunks.chunk(TextDelta(text="a", warnings=("two",))) + chunks.chunk(TextDelta(text="b")))
    assert first["warnings"] == ["one", "two"] and "warnings" not in second


def test_reasoning_and_tool_calls_stream() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    chunks = writer()
    reasoning, tools = events(chunks.chunk(TextDelta(reasoning="hm")) + chunks.chunk(TextDelta(tool_calls=[call])))
    assert reasoning["choices"][0]["delta"] == {"reasoning_content": "hm", "reasoning": "hm"}
    assert tools["choices"][0]["delta"] == {"tool_calls": [call]}


def test_logprobs_of_chats() -> None:
    top = [logprob("a"), logprob("b", -math.inf)]
    result = fold("chat", TextDelta(text="a", logprobs=[logprob("a", -0.5, top)], finish="stop", usage=USAGE))
    (entry,) = result["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("a", -0.5, [97])
    assert [one["logprob"] for one in entry["top_logprobs"]] == [-0.5, MIN_LOGPROB]


def test_logprobs_of_completions_fold_as_they_stream() -> None:
    deltas = [
        TextDelta(text="ab", logprobs=[logprob("ab"), logprob("cd", top=[logprob("x", -2.0)])]),
        TextDelta(text="cde", logprobs=[logprob("e")], finish="stop", usage=USAGE),
    ]
    whole = fold("completion", *deltas)["choices"][0]["logprobs"]
    assert whole["tokens"] == ["ab", "cd", "e"]
    assert whole["text_offset"] == [0, 2, 4]
    assert whole["top_logprobs"] == [{}, {"x": -2.0}, {}]
    chunks = writer("completion")
    streamed = [events(chunks.chunk(delta))[0]["choices"][0]["logprobs"]["text_offset"] for delta in deltas]
    assert streamed == [[0, 2], [4]]


def test_a_folded_chat() -> None:
    result = fold(
        "chat",
        TextDelta(index=1, text="b"),
        TextDelta(text="a", reasoning="hm"),
        TextDelta(text="c", finish="length"),
        TextDelta(index=1, finish="stop", stop_reason=7, usage=USAGE, warnings=("w",)),
        num_choices=2,
    )
    one, two = result["choices"]
    assert one["message"]["content"] == "ac" and one["message"]["reasoning_content"] == "hm"
    assert (one["finish_reason"], two["finish_reason"], two["stop_reason"]) == ("length", "stop", 7)
    assert (result["object"], result["usage"], result["warnings"]) == ("chat.completion", USAGE_OBJECT, ["w"])


def test_folded_tool_calls_are_put_together() -> None:
    pieces = [
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "id": "b", "function": {"name": "g"}},
    ]
    result = fold("chat", *(TextDelta(tool_calls=[piece]) for piece in pieces), TextDelta(finish="tool_calls"))
    message = result["choices"][0]["message"]
    assert message["content"] is None
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"x": 1}'},
        {"name": "g", "arguments": ""},
    ]


def test_errors() -> None:
    error = error_object("no", kind="server_error", code="x", n_ctx=5)
    assert error == {"error": {"message": "no", "type": "server_error", "param": None, "code": "x", "n_ctx": 5}}
    assert events(error_event(error)) == [error]
    assert events(DONE) == ["[DONE]"]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_the_stream_and_the_fold_say_the_same(kind: ApiKind) -> None:
    deltas = [TextDelta(text=text) for text in ("he", "l\n", '"o', "\u20ac\U0001f600")]
    deltas.append(TextDelta(finish="stop", usage=USAGE))
    chunks = writer(kind)
    streamed = [event["choices"][0] for delta in deltas for event in events(chunks.chunk(delta))]
    pieces = [one["delta"].get("content", "") if kind == "chat" else one["text"] for one in streamed]
    choice = fold(kind, *deltas)["choices"][0]
    assert "".join(pieces) == (choice["message"]["content"] if kind == "chat" else choice["text"])
