"""What engines tell of their prefix caches: whoever follows it knows what is cached, at any time."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from model_cards.card import ModelCard
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.block_log import BlockEvent, BlockLog
from runner.engines.mock_blocks import key_bytes
from runner.engines.mocker import MockEngine, make_engine
from runner.engines.native.core import Core, CoreConfig
from runner.types import TokenRequest
from tests.runner.engines.native.fake_model import VOCAB, Client, FakeModel, step

prompts = st.builds(
    lambda family, shared, own: [family] * shared + own,
    st.integers(1, 3),
    st.integers(0, 24),
    st.lists(st.integers(4, 6), min_size=1, max_size=10),
)
loads = st.lists(st.tuples(prompts, st.integers(1, 12), st.integers(0, 4)), min_size=1, max_size=25)
"""Prompt, max_tokens, steps until the next comes."""


class Follower:
    """What is cached, as far as the events say: of each block all tokens from the start of the prompt."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.cached: dict[bytes, list[int]] = {}

    def hear(self, events: list[BlockEvent]) -> None:
        for event in events:
            if event.kind == "cleared":
                self.cached.clear()
            elif event.kind == "removed":
                for key in event.keys:
                    self.cached.pop(key, None)  # it may be a block of an adapter's
            else:
                self._store(event)

    def _store(self, event: BlockEvent) -> None:
        assert len(event.token_ids) == len(event.keys) * self.block_size
        so_far = self.cached.get(event.parent, []) if event.parent else []
        for at, key in enumerate(event.keys):
            so_far = so_far + event.token_ids[at * self.block_size : (at + 1) * self.block_size]
            self.cached[key] = so_far


def request(number: int, prompt: list[int], max_tokens: int, adapter: str | None = None) -> TokenRequest:
    return TokenRequest(id=str(number), token_ids=prompt, max_tokens=max_tokens, adapter=adapter)


@settings(max_examples=100, deadline=None)
@given(loads, st.integers(12, 30))
def test_the_mockers_cache_can_be_followed(load: list[Any], num_blocks: int) -> None:
    engine = MockEngine()
    card = ModelCard(name="m", source="m", vocab_size=300, context_length=4096, eos_token_ids=(0,))
    extra = {"speedup_ratio": 0, "block_size": 4, "num_gpu_blocks": num_blocks, "watermark": 0.0}
    engine.start(EngineSpec(name="mocker", card=card, options=EngineOptions(extra=extra)))
    engine.block_log.start()
    follower = Follower(4)
    for number, (prompt, max_tokens, num_steps) in enumerate(load):
        engine.add(request(number, prompt, max_tokens))
        for _ in range(num_steps if number + 1 < len(load) else 500):
            if not engine.has_work():
                break
            engine.step()
            follower.hear(engine.block_log.take())
            pool = engine._pool
            assert set(follower.cached) == {key_bytes(key) for key in (*pool._users, *pool._idle)}
    assert not engine.has_work()


@settings(max_examples=100, deadline=None)
@given(loads, st.integers(16, 30), st.booleans())
def test_natives_cache_can_be_followed(load: list[Any], num_blocks: int, has_adapters: bool) -> None:
    sizes = {"num_blocks": num_blocks, "block_size": 4, "max_running": 4, "max_batched_tokens": 24}
    core = Core(CoreConfig(**sizes, context_length=64, vocab_size=VOCAB))
    model, client, follower = FakeModel(num_blocks, 4), Client(), Follower(4)
    core.block_log.start()
    for number, (prompt, max_tokens, num_steps) in enumerate(load):
        adapter = "a" if has_adapters and number % 3 == 0 else None
        core.add(request(number, prompt, max_tokens, adapter))
        for _ in range(num_steps if number + 1 < len(load) else 500):
            if not core.has_work():
                break
            step(core, model, client)
            follower.hear(core.block_log.take())
            known = set(core._scheduler.pool._block_of)
            assert set(follower.cached) <= known if has_adapters else set(follower.cached) == known
    assert not core.has_work()


def test_nothing_is_kept_for_nobody() -> None:
    log = BlockLog()
    log.stored([b"a"], b"", [1, 2])
    log.removed(b"a")
    assert log.take() == []
    log.start()
    log.removed(b"b")
    log.removed(b"c")
    log.stored([], b"c", [])
    assert log.take() == [BlockEvent("cleared"), BlockEvent("removed", (b"b", b"c"))]


async def test_over_the_process_and_again_after_its_death() -> None:
    card = ModelCard(name="m", source="m", vocab_size=300, context_length=4096, eos_token_ids=(0,))
    options = EngineOptions(extra={"speedup_ratio": 0, "block_size": 4})
    engine = make_engine(EngineSpec(name="mocker", card=card, options=options))
    heard: list[BlockEvent] = []
    try:
        await engine.start()
        engine.watch_blocks(heard.extend)
        for _ in range(2):
            async for _ in engine.generate(request(1, [1, 2, 3, 4, 5, 6, 7, 8, 9], 2)):
                pass
            async with asyncio.timeout(10):
                while len(heard) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert [(one.kind, len(one.keys), one.token_ids) for one in heard] == [
                ("cleared", 0, []),
                ("stored", 2, [1, 2, 3, 4, 5, 6, 7, 8]),
            ]
            heard.clear()
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            async with asyncio.timeout(10):
                while engine.is_up:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    finally:
        await engine.close()
