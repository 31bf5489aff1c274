"""Slots and scheduler without llama.cpp: a fake memory that knows every cell, and random traffic."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.engines.llamacpp.sampler import Sampler
from runner.engines.llamacpp.scheduler import Scheduler
from runner.engines.llamacpp.sequence import Sequence
from runner.engines.llamacpp.slots import Prefix, Slots, common_prefix_len
from runner.types import SamplingParams, TokenRequest


class FakeMemory:
    """What llama.cpp would hold: sequence -> cells, where a cell is an object shared by those that copied it."""

    def __init__(self, *, can_forget_parts: bool = True) -> None:
        self.held: dict[int, list[object]] = {}
        self.can_forget_parts = can_forget_parts

    def forget(self, sequence: int, keep: int = 0) -> bool:
        if keep and not self.can_forget_parts:
            return False
        self.held[sequence] = self.held.get(sequence, [])[:keep]
        return True

    def share_prefix(self, source: int, target: int, length: int) -> None:
        assert not self.held.get(target), "the target must be empty"
        self.held[target] = self.held[source][:length]

    def compute(self, sequence: int, count: int) -> None:
        self.held[sequence] = self.held.get(sequence, []) + [object() for _ in range(count)]

    @property
    def num_used(self) -> int:
        return len({id(cell) for cells in self.held.values() for cell in cells})


def make_slots(memory: FakeMemory, **kwargs: object) -> Slots:
    return Slots(memory, **{"num_slots": 4, "num_cells": 64, "reuse": True, "can_split": True, **kwargs})


def make_sequence(name: str, tokens: list[int], max_tokens: int = 8, adapter: str | None = None) -> Sequence:
    request = TokenRequest(
        id=name, token_ids=tokens, max_tokens=max_tokens, adapter=adapter, sampling=SamplingParams(temperature=0.0)
    )
    return Sequence(request, Sampler(request, vocab_size=100, seed=0))


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_len(a: list[int], b: list[int]) -> None:
    wanted = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix_len(a, b) == wanted


def fill(slots: Slots, memory: FakeMemory, tokens: list[int], adapter: str | None = None) -> Prefix:
    """Take, compute and release; returns what was reused."""
    prefix = slots.find_prefix(tokens, adapter)
    slot = slots.take(prefix, adapter)
    memory.compute(slot.index, len(tokens) - prefix.length)
    slots.extend(slot, tokens[prefix.length :])
    slots.release(slot)
    return prefix


def test_prefixes_are_shared_and_counted_once() -> None:
    memory = FakeMemory()
    slots = make_slots(memory)
    fill(slots, memory, [1, 2, 3, 4, 5, 6])
    assert fill(slots, memory, [1, 2, 3, 9]).length == 3
    assert memory.num_used == 7 == slots.num_cells - slots.num_free_cells
    assert slots.find_prefix([1, 2, 3, 4, 5, 6], None).length == 5  # the last token must be computed again
    assert slots.find_prefix([1, 2, 3, 4, 5, 6, 7], None).length == 6
    assert slots.find_prefix([1, 2, 3], "lora").length == 0


def test_the_oldest_idle_prefix_goes_first() -> None:
    memory = FakeMemory()
    slots = make_slots(memory, num_slots=3)
    for first in (1, 2, 3):
        fill(slots, memory, [first, 7, 7])
    fill(slots, memory, [1, 7, 7, 8])  # used again: now 2 is the oldest
    assert slots.evict_one()
    assert [slots.find_prefix([first, 7, 7, 9], None).length for first in (1, 2, 3)] == [3, 0, 3]


def test_state_that_cannot_be_split_is_only_continued() -> None:
    memory = FakeMemory(can_forget_parts=False)
    slots = make_slots(memory, can_split=False)
    fill(slots, memory, [1, 2, 3])
    assert slots.find_prefix([1, 2, 9, 9], None).length == 0
    assert fill(slots, memory, [1, 2, 3, 4]).length == 3
    assert memory.num_used == 4


@settings(max_examples=100, deadline=None)
@example(200, False)  # the whole group of one adapter was preempted
@given(st.integers(0, 10_000), st.booleans())
def test_random_traffic_ends_and_the_mirror_is_exact(seed: int, can_split: bool) -> None:
    """Requests come, grow, are cancelled and preempted; each gets all its tokens, and no cell is lost or doubled."""
    rng = random.Random(seed)
    memory = FakeMemory(can_forget_parts=can_split)
    slots = make_slots(memory, num_slots=6, num_cells=48, can_split=can_split)
    scheduler = Scheduler(slots, max_running=4, batch_size=16, prefill_chunk=4)
    wanted: dict[str, int] = {}
    finished: dict[str, Sequence] = {}
    for _ in range(5000):
        if len(wanted) < 15 and rng.random() < 0.4:
            name = str(len(wanted))
            tokens = [rng.randrange(2) for _ in range(rng.randint(1, 30))]
            wanted[name] = rng.randint(1, 48 - len(tokens))
            scheduler.add(make_sequence(name, tokens, wanted[name], adapter=rng.choice([None, "a"])))
        if rng.random() < 0.02 and wanted:
            name = rng.choice(list(wanted))
            if name not in finished:
                scheduler.remove(name)
                wanted[name] = -1
        work = scheduler.schedule()
        assert sum(item.num_tokens for item in work) <= 16
        assert len({item.sequence.adapter for item in work}) <= 1
        for sequence, num_tokens in work:
            slot = sequence.slot
            assert slot is not None
            start = sequence.num_computed
            memory.compute(slot.index, num_tokens)
            slots.extend(slot, sequence.tokens[start : start + num_tokens])
            assert slot.tokens == sequence.tokens[: len(slot.tokens)]
            if sequence.num_remaining == 0 and sequence.append(rng.randrange(2)) is not None:
                scheduler.finish(sequence)
                finished[sequence.id] = sequence
        assert memory.num_used == slots.num_cells - slots.num_free_cells <= 48
        if len(wanted) == 15 and not scheduler.running and not scheduler.waiting:
            break
    else:
        pytest.fail("it does not come to an end")
    for name, count in wanted.items():
        if name in finished:
            assert finished[name].num_output == count
        else:
            assert count == -1
