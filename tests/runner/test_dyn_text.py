"""The text of an answer is the same byte for byte: from an engine here, over the wire, and moved in mid-character."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_cards.card import ModelCard
from runner.errors import EngineDied
from runner.pipeline import ChatPipeline
from runner.types import ChatRequest, EngineInfo, SamplingOptions, TokenDelta, TokenRequest
from tests.runner.net.cluster import InProcess

_PIECES = st.one_of(
    st.text(alphabet="aé€🙂S", min_size=1, max_size=3).map(str.encode),
    st.sampled_from([b"STOP", b"\xe2\x82", b"\xf0\x9f", b"\xff", b"\xc0", b"\xed\xa0", b"\x82", b" "]),
)
_BYTES = st.lists(_PIECES, min_size=1, max_size=8).map(b"".join)


class Bytes:
    """Goes on with `data` wherever the prompt is in it; dies after `fail_after` tokens of an attempt."""

    def __init__(self, data: Sequence[int], sizes: Sequence[int], fail_after: int | None = None) -> None:
        self.data, self.sizes, self.fail_after = list(data), sizes, fail_after
        self.num_calls = 0

    async def start(self) -> EngineInfo:
        return EngineInfo(name="bytes", context_length=512, max_running=4, capabilities=("temperature", "embed"))

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        self.num_calls += 1
        at = len(request.token_ids)
        assert self.data[:at] == request.token_ids
        num_made = 0
        while at < len(self.data):
            size = self.sizes[num_made % len(self.sizes)]
            if self.fail_after is not None:
                size = min(size, self.fail_after - num_made)
            ids = self.data[at : at + size]
            at, num_made = at + len(ids), num_made + len(ids)
            yield TokenDelta(ids, "length" if at == len(self.data) else None)
            await asyncio.sleep(0)
            if num_made == self.fail_after:
                raise EngineDied("the engine is gone")

    async def health(self) -> None: ...

    async def stats(self) -> dict[str, float]:
        return {}

    async def embed(self, request: Any) -> Any:
        raise NotImplementedError

    async def close(self) -> None: ...


async def _text(card: ModelCard, engine: Any, prompt: list[int], num: int, stop: tuple[str, ...], echo: bool) -> str:
    """The streamed text and how it ended."""
    service = ChatPipeline(card, engine)
    await service.start()
    try:
        request = ChatRequest(
            id="r", prompt=prompt, max_tokens=num, stop=stop, echo=echo, sampling=SamplingOptions(temperature=0.0)
        )
        text, finish = "", None
        async with aclosing(service.generate(request)) as stream:
            async for delta in stream:
                text += delta.text
                finish = delta.finish or finish
        return f"{finish}: {text}"
    finally:
        await service.close()


@pytest.mark.timeout(300)
@settings(max_examples=60, deadline=None)
@given(
    prompt=_BYTES,
    answer=_BYTES,
    cut=st.integers(0, 3),
    move_at=st.integers(1, 12),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    stop=st.sampled_from([(), ("STOP",), ("\ufffd",)]),
    echo=st.booleans(),
)
def test_local_remote_and_moved_answers_have_the_same_text(
    toy_card: ModelCard,
    prompt: bytes,
    answer: bytes,
    cut: int,
    move_at: int,
    sizes: list[int],
    stop: tuple[str, ...],
    echo: bool,
) -> None:
    service = ChatPipeline(toy_card, Bytes([], [1]))
    tokenizer = service._load()[0]
    ids_of = {tokenizer.token_bytes(index): index for index in range(256)}
    data = [ids_of[bytes([byte])] for byte in prompt + answer]
    start = max(1, len(prompt) - cut)  # within a character, often
    first_dies = Bytes(data, sizes, fail_after=move_at)

    async def all_three() -> list[str]:
        engines: list[Any] = [
            Bytes(data, sizes),
            InProcess([Bytes(data, [1])]),
            InProcess([first_dies, Bytes(data, [2, 1])], migration_limit=2),
        ]
        num = len(data) - start
        return [await _text(toy_card, engine, data[:start], num, stop, echo) for engine in engines]

    local, remote, moved = asyncio.run(all_three())
    assert local == remote == moved
    assert first_dies.num_calls == 1
    if echo and not stop:
        assert local == "length: " + (prompt + answer).decode("utf-8", "replace")
