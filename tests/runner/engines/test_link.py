"""Waking of readers: first and last deltas at once, those between at a bounded rate, merged, none lost."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from runner.engines import frames, link
from runner.engines.link import Link
from runner.types import TokenDelta, TokenRequest


class Wire:
    """A link whose child is the test."""

    def __init__(self) -> None:
        self.link = Link(lambda kind, payload: None, lambda link, why: None)
        self.heard: dict[int, list[TokenDelta]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def open(self, number: int) -> None:
        """Start `number` readers; their keys are 1 to `number`."""
        for key in range(1, number + 1):
            self.tasks.append(asyncio.create_task(self._read(key)))
        await asyncio.sleep(0)

    async def _read(self, key: int) -> None:
        heard = self.heard[key] = []
        async with contextlib.aclosing(self.link.generate(TokenRequest(id=str(key), token_ids=[1]))) as stream:
            async for delta in stream:
                heard.append(delta)

    async def step(self, number: int, token: int, *, is_last: bool = False) -> None:
        """A delta for each stream, and a moment for the readers that are woken."""
        delta = TokenDelta([token], "length" if is_last else None)
        self.link.data_received(bytes(frames.encode(frames.DELTAS, [(key, delta) for key in range(1, number + 1)])))
        for _ in range(3):
            await asyncio.sleep(0)


async def test_many_fast_steps_are_merged_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "WAKE_S", 0.01)
    wire = Wire()
    await wire.open(8)
    await wire.step(8, 0)
    assert all(deltas == [TokenDelta([0])] for deltas in wire.heard.values()), "the first token waits for nothing"
    for token in range(1, 10):
        await wire.step(8, token)
    assert all(len(deltas) == 1 for deltas in wire.heard.values()), "the readers sleep through the pause"
    async with asyncio.timeout(5):
        while len(wire.heard[1]) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert wire.heard[8][1].token_ids == list(range(1, 10))
    await wire.step(8, 10, is_last=True)
    await asyncio.wait_for(asyncio.gather(*wire.tasks), 5)
    assert wire.heard[8][-1] == TokenDelta([10], "length")


async def test_slow_steps_are_not_held_back() -> None:
    wire = Wire()
    await wire.open(1)
    for token in range(5):
        await wire.step(1, token)
        time.sleep(1.2 * link.MIN_PAUSE_S)  # an engine's step  # noqa: ASYNC251
    assert [delta.token_ids for delta in wire.heard[1]] == [[0], [1], [2], [3], [4]]
    await wire.step(1, 5, is_last=True)
    await asyncio.wait_for(asyncio.gather(*wire.tasks), 5)


async def test_an_error_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "WAKE_S", 10.0)
    monkeypatch.setattr(link, "MAX_PAUSE_S", 10.0)
    monkeypatch.setattr(link, "_LATE_S", 10.0)
    wire = Wire()
    await wire.open(2)
    await wire.step(2, 0)
    await wire.step(2, 1)
    wire.link.fail("the child is gone")
    done = await asyncio.wait_for(asyncio.gather(*wire.tasks, return_exceptions=True), 5)
    assert all("the child is gone" in str(error) for error in done)
    assert [delta.token_ids for delta in wire.heard[1]] == [[0], [1]], "what came before is still delivered"
