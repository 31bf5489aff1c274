"""Framing: any cut of the bytes gives the same messages; what is no frame is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_cards.card import ModelCard
from runner.engines import frames
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.frames import FrameReader, FrameTooLarge, ProtocolError
from runner.engines.merge import merge_tokens, own_delta, push_text
from runner.types import TextDelta, TokenDelta, TokenLogprob, TokenRequest, Usage

MESSAGES = [
    (frames.DELTAS, [(1, TokenDelta([5, 6])), (2, TokenDelta([], "stop", stop_token_id=2, cached_tokens=9))]),
    (frames.DELTAS, [(7, TokenDelta([5], logprobs=[TokenLogprob(5, -0.5, [(5, -0.5), (6, -1.0)])]))]),
    (frames.GENERATE, (3, TokenRequest(id="ä", token_ids=list(range(1000)), max_tokens=5))),
    (frames.CANCEL, 3),
    (frames.CLOSE, None),
    (frames.ERROR, frames.ErrorReply(4, "RequestError", "no", {"field": "prompt"})),
    (frames.HEARTBEAT, frames.Heartbeat({"num_running": 2.0}, 0.5)),
]


def read(chunks: list[bytes], max_bytes: int = frames.MAX_FRAME_BYTES) -> list[tuple[int, object]]:
    reader = FrameReader(max_bytes)
    return [message for chunk in chunks for message in reader.feed(chunk)]


@given(st.lists(st.integers(1, 400), max_size=60))
def test_any_cut_gives_the_same_messages(sizes: list[int]) -> None:
    data = b"".join(bytes(frames.encode(kind, payload)) for kind, payload in MESSAGES)
    chunks, at = [], 0
    for size in sizes:
        chunks.append(data[at : at + size])
        at += size
    assert read([*chunks, data[at:]]) == MESSAGES


def test_a_spec_survives() -> None:
    card = ModelCard(name="m", source="m", eos_token_ids=(1, 2), details={"a": [1]})
    spec = EngineSpec(name="x", card=card, options=EngineOptions(extra={"k": {"n": 1.5}}), tail=("a", "b"))
    start = frames.Start("module:attr", "step", spec)
    assert read([bytes(frames.encode(frames.START, start))]) == [(frames.START, start)]


@pytest.mark.parametrize(
    "data",
    [
        b"garbage garbage",
        b"\x00\x00\x00\x00\x01",
        b"\xff\xff\xff\xff\x01",
        b"\x00\x00\x00\x02\x63\xc0",
        b"\x00\x00\x00\x02\x13\xc1",
        b"\x00\x00\x00\x02\x13\xa1",
        b"\x00\x00\x00\x05\x13\x91\x92\xa1a",
    ],
    ids=["text", "empty", "huge", "unknown kind", "not msgpack", "cut msgpack", "wrong types"],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read([data + bytes(16)])


@given(st.binary(max_size=300))
def test_random_bytes_never_do_worse_than_refuse(data: bytes) -> None:
    try:
        read([data])
    except ProtocolError:
        return


def test_frames_have_a_bound_on_both_sides() -> None:
    big = (1, TokenRequest(id="r", token_ids=list(range(100))))
    with pytest.raises(FrameTooLarge):
        frames.encode(frames.GENERATE, big, max_bytes=50)
    with pytest.raises(ProtocolError, match="1 to 50 are allowed"):
        read([bytes(frames.encode(frames.GENERATE, big))], max_bytes=50)


def test_merged_tokens_lose_nothing() -> None:
    shared = [1, 2]
    first = own_delta(TokenDelta(shared, logprobs=[TokenLogprob(1, 0.0), TokenLogprob(2, 0.0)], cached_tokens=4))
    merged = merge_tokens(first, TokenDelta([3], "stop", [TokenLogprob(3, 0.0)], stop_token_id=9))
    assert merged == TokenDelta(
        [1, 2, 3], "stop", [TokenLogprob(1, 0.0), TokenLogprob(2, 0.0), TokenLogprob(3, 0.0)], 9, 4
    )
    assert shared == [1, 2], "the engine's own list was changed"


def test_merged_text_keeps_choices_and_order() -> None:
    waiting: list[TextDelta] = []
    usage = Usage(prompt_tokens=1, completion_tokens=3)
    for delta in (
        TextDelta(index=0, reasoning="hm"),
        TextDelta(index=0, text="a"),
        TextDelta(index=1, text="x"),
        TextDelta(index=0, text="b"),
        TextDelta(index=0, reasoning="late"),
        TextDelta(index=1, text="y", finish="stop"),
        TextDelta(index=0, finish="stop", usage=usage),
    ):
        push_text(waiting, delta)
    assert [delta for delta in waiting if delta.index == 1] == [TextDelta(index=1, text="xy", finish="stop")]
    assert [delta for delta in waiting if delta.index == 0] == [
        TextDelta(index=0, text="ab", reasoning="hm"),
        TextDelta(index=0, reasoning="late", finish="stop", usage=usage),
    ]
    assert waiting[-1].usage == usage
