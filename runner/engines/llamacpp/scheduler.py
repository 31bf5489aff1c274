"""Scheduler: which tokens of which requests the next step computes.

There is no prefill phase and no decode phase: each sequence's `num_computed` chases its tokens (vLLM's V1 idea). A step
takes one token of everyone who needs just one, then prompt chunks up to a budget, so that long prompts do not stop
those who are already answering. Owns waiting and running requests; does not know logits or llama.cpp.

When cells run out: idle prefixes go first, oldest first; then the youngest request gives its cells back and waits in
front, keeping every token it made, and is computed again later.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from runner.engines.llamacpp.sequence import Sequence
from runner.engines.llamacpp.slots import Prefix, Slots, common_prefix_len

_WORTH_WAITING = 64
"""A request waits for another that is about to compute at least so many tokens of its own prefix."""
_GROWTH_CELLS = 32
"""Cells kept free for each running request when one more is admitted."""


class Work(NamedTuple):
    """Compute the next `num_tokens` tokens of `sequence`."""

    sequence: Sequence
    num_tokens: int


class Scheduler:
    """First come, first served, up to `max_running` at once."""

    def __init__(self, slots: Slots, *, max_running: int, batch_size: int, prefill_chunk: int) -> None:
        self._slots = slots
        self._max_running = max_running
        self._batch_size = batch_size
        self._prefill_chunk = prefill_chunk
        self._last_adapter: str | None = None
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """Oldest first."""
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue it."""
        self.waiting.append(sequence)

    def remove(self, request_id: str) -> None:
        """Forget a request, waiting or running; its computed tokens stay as a prefix for others."""
        for sequence in self.running:
            if sequence.id == request_id:
                self.finish(sequence)
                return
        self.waiting = deque(sequence for sequence in self.waiting if sequence.id != request_id)

    def finish(self, sequence: Sequence) -> None:
        """It is done."""
        self.running.remove(sequence)
        assert sequence.slot is not None
        self._slots.release(sequence.slot)
        sequence.slot = None

    def schedule(self, budget: int | None = None) -> list[Work]:
        """The next step: at most `batch_size` tokens (`budget` prompt tokens), all of one adapter, cells provided."""
        self._admit()
        while self.running:
            group, preempted_before = self._next_group(), self.num_preemptions
            decodes = self._decodes(group)
            work = decodes + self._prefills(group, decodes, budget)
            if work:
                return work
            if self.num_preemptions == preempted_before:  # else the group itself may have gone: look again
                self._preempt_youngest()
        return []

    def _next_group(self) -> list[Sequence]:
        """The running sequences of one adapter; each adapter in turn, since llama.cpp has one per step."""
        adapters = list(dict.fromkeys(sequence.adapter for sequence in self.running))
        turn = adapters.index(self._last_adapter) + 1 if self._last_adapter in adapters else 0
        self._last_adapter = adapters[turn % len(adapters)]
        return [sequence for sequence in self.running if sequence.adapter == self._last_adapter]

    def _decodes(self, group: list[Sequence]) -> list[Work]:
        while True:
            ready = [sequence for sequence in group if sequence.slot is not None and sequence.num_remaining == 1]
            if self._make_room(len(ready)):
                return [Work(sequence, 1) for sequence in ready]
            self._preempt_youngest()

    def _prefills(self, group: list[Sequence], decodes: list[Work], budget: int | None) -> list[Work]:
        left = self._batch_size - len(decodes)
        left = min(left, self._prefill_chunk if decodes else left, budget or left)
        reserved = len(decodes)
        work = []
        for sequence in group:
            if sequence.slot is None or sequence.num_remaining == 1:
                continue
            num_tokens = min(sequence.num_remaining, left)
            if not self._make_room(reserved + num_tokens):
                num_tokens = self._slots.num_free_cells - reserved
            if num_tokens <= 0:
                break
            work.append(Work(sequence, num_tokens))
            reserved += num_tokens
            left -= num_tokens
        return work

    def _make_room(self, cells: int) -> bool:
        while self._slots.num_free_cells < cells:
            if not self._slots.evict_one():
                return False
        return True

    def make_room_anyhow(self) -> bool:
        """llama.cpp found no cells although we counted enough: free something. False if nothing can be freed."""
        if self._slots.evict_one():
            return True
        if len(self.running) < 2:
            return False
        self._preempt_youngest()
        return True

    def _preempt_youngest(self) -> None:
        assert len(self.running) > 1, "one request alone always fits: its context is no larger than the cache"
        sequence = self.running.pop()
        assert sequence.slot is not None
        self._slots.clear(sequence.slot)
        self._slots.release(sequence.slot)
        sequence.slot = None
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _admit(self) -> None:
        skipped: list[Sequence] = []
        while self.waiting and len(self.running) < self._max_running and len(skipped) < self._max_running:
            sequence = self.waiting[0]
            prefix = self._slots.find_prefix(sequence.tokens, sequence.adapter)
            if self._will_be_cached(sequence, prefix):
                skipped.append(self.waiting.popleft())
                continue
            if not self._slots.has_idle() or not self._fits(sequence, prefix):
                break
            self.waiting.popleft()
            self._start(sequence, prefix)
        self.waiting.extendleft(reversed(skipped))

    def _will_be_cached(self, sequence: Sequence, prefix: Prefix) -> bool:
        """Another request is computing the same prefix now (several answers to one prompt): it is worth waiting."""
        return self._slots.can_share and any(
            other.num_remaining > 1
            and other.adapter == sequence.adapter
            and common_prefix_len(other.tokens, sequence.tokens) >= prefix.length + _WORTH_WAITING
            for other in self.running
        )

    def _fits(self, sequence: Sequence, prefix: Prefix) -> bool:
        if not self.running:
            return True
        promised = sum(other.num_remaining for other in self.running) + _GROWTH_CELLS * len(self.running)
        available = self._slots.num_free_cells + self._slots.num_evictable_cells(spare=prefix.slot)
        return len(sequence.tokens) - prefix.length + promised <= available

    def _start(self, sequence: Sequence, prefix: Prefix) -> None:
        sequence.slot = self._slots.take(prefix, sequence.adapter)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(sequence.num_computed, sequence.prompt_len)
            self.num_prompt_tokens += sequence.prompt_len
            self.num_cached_tokens += sequence.cached_tokens
        self.running.append(sequence)
