"""Slots: what llama.cpp's sequences hold in the KV cache, mirrored to the token.

Owns which slot is taken, which tokens its cells stand for, and how many cells are free. A cell may belong to several
slots (a shared prefix); it is free when the last of them lets go:

    slot 0 (taken)  [sys sys sys|A A A A]        cells 0 1 2 3 4 5 6
    slot 1 (taken)  [sys sys sys|B B]            cells 0 1 2 7 8           used: 9, not 12
    slot 2 (idle)   []

An idle slot keeps its tokens, as a prefix for a later request, until cells run out. Where each slot has cells of its
own, a prefix is copied instead, and cells never run out. Does not know requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class KvMemory(Protocol):
    """The part of Context that slots need; a fake in tests."""

    def forget(self, sequence: int, keep: int = 0) -> bool:
        """As Context.forget."""

    def share_prefix(self, source: int, target: int, length: int) -> None:
        """As Context.share_prefix."""


class Slot:
    """One llama.cpp sequence. `tokens[i]` lies at position i in cell `cells[i]`."""

    __slots__ = ("adapter", "cells", "index", "is_taken", "last_used", "tokens")

    def __init__(self, index: int) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.cells: list[int] = []
        self.adapter: str | None = None
        self.is_taken = False
        self.last_used = 0


class CellPool:
    """Counts of how many slots hold each cell; numbers are ours, llama.cpp's own order does not matter."""

    def __init__(self, num_cells: int) -> None:
        self.num_cells = num_cells
        self._holders = [0] * num_cells
        self._free = list(range(num_cells - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Cells that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free cells; there must be as many."""
        assert count <= len(self._free), "more cells than llama.cpp has"
        taken = [self._free.pop() for _ in range(count)]
        for cell in taken:
            self._holders[cell] = 1
        return taken

    def share(self, cells: Sequence[int]) -> None:
        """One more slot holds them."""
        for cell in cells:
            self._holders[cell] += 1

    def give_back(self, cells: Sequence[int]) -> None:
        """One slot less holds them."""
        for cell in cells:
            self._holders[cell] -= 1
            if not self._holders[cell]:
                self._free.append(cell)

    def num_exclusive(self, cells: Sequence[int]) -> int:
        """How many of `cells` have one holder: what giving them back would free."""
        holders = self._holders
        return sum(1 for cell in cells if holders[cell] == 1)


WORTH_COPYING = 64
"""Tokens. Where slots have cells of their own, sharing a prefix copies all of the source's cells."""


class Prefix(NamedTuple):
    """The longest reusable prefix for a prompt: where it lies and how many tokens it has."""

    slot: Slot | None
    length: int


class Slots:
    """All slots of one context."""

    def __init__(
        self,
        memory: KvMemory,
        *,
        num_slots: int,
        num_cells: int,
        reuse: bool,
        can_split: bool,
        own_cells: bool = False,
    ) -> None:
        """`can_split`: a part of a slot can be taken back or shared (not with recurrent state).

        `own_cells`: each slot has its even part of the cells, and sharing is copying.
        """
        self._memory = memory
        self._slots = [Slot(index) for index in range(num_slots)]
        self._pool = CellPool(num_cells)
        self._reuse = reuse
        self._can_split = can_split
        self._own_cells = own_cells
        self._clock = 0

    @property
    def num_free_cells(self) -> int:
        """Cells that hold nothing."""
        return self._pool.num_free

    @property
    def num_cells(self) -> int:
        """All cells."""
        return self._pool.num_cells

    @property
    def can_share(self) -> bool:
        """Whether one slot's prefix can serve another."""
        return self._reuse and self._can_split

    def num_evictable_cells(self, spare: Slot | None = None) -> int:
        """Cells that evicting the idle slots would free, all but `spare`. A lower bound where idle slots share."""
        idle = (slot for slot in self._slots if not slot.is_taken and slot is not spare)
        return sum(self._pool.num_exclusive(slot.cells) for slot in idle)

    def has_idle(self) -> bool:
        """Whether `take` can succeed."""
        return any(not slot.is_taken for slot in self._slots)

    def find_prefix(self, tokens: Sequence[int], adapter: str | None) -> Prefix:
        """The best source of a prefix, one token short of the whole: the last one must be computed for its logits."""
        best = Prefix(None, 0)
        if not self._reuse:
            return best
        for slot in self._slots:
            if slot.adapter != adapter or (self._can_split and len(slot.tokens) <= best.length):
                continue
            length = min(common_prefix_len(slot.tokens, tokens), len(tokens) - 1)
            if not self._can_split and (slot.is_taken or length < len(slot.tokens)):
                continue
            if length > best.length:
                best = Prefix(slot, length)
        return best

    def take(self, prefix: Prefix, adapter: str | None) -> Slot:
        """A slot that holds exactly `prefix`: the source itself, or one that shares it, whichever forgets less."""
        source, length = prefix
        slot = self._choose(source, length)
        if slot is source:
            self.truncate(slot, length)
        else:
            self.clear(slot)
            if source is not None and length >= (WORTH_COPYING if self._own_cells else 1):
                self._share(source, slot, length)
        slot.is_taken, slot.adapter = True, adapter
        self._touch(slot)
        return slot

    def _share(self, source: Slot, target: Slot, length: int) -> None:
        self._memory.share_prefix(source.index, target.index, length)
        target.tokens = source.tokens[:length]
        if self._own_cells:
            target.cells = self._pool.take(length)
        else:
            target.cells = source.cells[:length]
            self._pool.share(target.cells)

    def _choose(self, source: Slot | None, length: int) -> Slot:
        idle = [slot for slot in self._slots if not slot.is_taken]
        if source is None or source.is_taken:
            return min(idle, key=lambda slot: (bool(slot.tokens), slot.last_used))
        others = [slot for slot in idle if slot is not source]
        if not others or not self._can_split:
            return source
        oldest = min(others, key=lambda slot: (bool(slot.tokens), slot.last_used))
        return source if len(source.tokens) - length <= len(oldest.tokens) else oldest

    def extend(self, slot: Slot, tokens: Sequence[int]) -> None:
        """`tokens` were computed; there must be cells for them."""
        slot.cells += self._pool.take(len(tokens))
        slot.tokens += tokens
        self._touch(slot)

    def truncate(self, slot: Slot, length: int) -> int:
        """Keep the first `length` tokens, or none if the model cannot take back a part. Returns how many are left."""
        if length < len(slot.tokens) and not self._memory.forget(slot.index, length):
            self._memory.forget(slot.index, 0)
            length = 0
        self._pool.give_back(slot.cells[length:])
        del slot.cells[length:], slot.tokens[length:]
        return length

    def clear(self, slot: Slot) -> None:
        """Forget all that it holds."""
        if slot.tokens:
            self.truncate(slot, 0)

    def release(self, slot: Slot) -> None:
        """The request is over; the tokens stay as a prefix."""
        slot.is_taken = False
        if not self._reuse:
            self.clear(slot)

    def evict_one(self) -> bool:
        """Empty the idle slot that was used longest ago; False if no idle slot holds anything."""
        idle = [slot for slot in self._slots if not slot.is_taken and slot.tokens]
        if not idle:
            return False
        self.clear(min(idle, key=lambda slot: slot.last_used))
        return True

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.last_used = self._clock


def common_prefix_len(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix; compares slices, so it costs what comparing lists costs."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit  # a[:low] == b[:low], a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
