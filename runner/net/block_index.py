"""BlockIndex: which worker is believed to hold which blocks of prompts.

A worker's blocks are in the order in which they were last used there. Owns the belief; where it comes from (what was
sent, what the worker said) is routing.py's. Memory is bounded: the blocks that nobody has used for longest go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

MAX_BLOCKS = 1 << 18
_NOBODY: tuple[int, ...] = ()
_NOTHING: OrderedDict[int, int] = OrderedDict()


class BlockIndex:
    """`number` is of the caller's: it grows, and says when a block was used."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._holders: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._held: dict[int, OrderedDict[int, int]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def num_held(self, worker_id: int) -> int:
        """Blocks of one worker."""
        return len(self._held.get(worker_id, _NOTHING))

    def used(self, worker_id: int, hashes: Sequence[int]) -> list[int]:
        """When each was last used there; 0 for one that is not there."""
        held = self._held.get(worker_id, _NOTHING)
        return [held.get(one, 0) for one in hashes]

    def add(self, worker_id: int, hashes: Iterable[int], number: int) -> None:
        """It holds them, or will."""
        mine = self._held.setdefault(worker_id, OrderedDict())
        for one in hashes:
            holders = self._holders.get(one, _NOBODY)
            if worker_id not in holders:
                self._holders[one] = (*holders, worker_id)
            self._holders.move_to_end(one)
            mine[one] = number
            mine.move_to_end(one)
        while len(self._holders) > self._max_blocks:
            one, holders = self._holders.popitem(last=False)
            for holder in holders:
                self._held[holder].pop(one, None)

    def remove(self, worker_id: int, hashes: Iterable[int]) -> None:
        """It holds them no more."""
        mine = self._held.get(worker_id, _NOTHING)
        for one in hashes:
            if mine.pop(one, None) is not None:
                self._without(one, worker_id)

    def remove_until(self, worker_id: int, number: int) -> None:
        """It holds nothing more that was last used at `number` or before."""
        mine = self._held.get(worker_id, _NOTHING)
        while mine:
            one, used = next(iter(mine.items()))
            if used > number:
                return
            del mine[one]
            self._without(one, worker_id)

    def forget(self, worker_id: int) -> None:
        """It holds nothing."""
        for one in self._held.pop(worker_id, _NOTHING):
            self._without(one, worker_id)

    def _without(self, one: int, worker_id: int) -> None:
        left = tuple(holder for holder in self._holders.get(one, _NOBODY) if holder != worker_id)
        if left:
            self._holders[one] = left
        else:
            self._holders.pop(one, None)

    def overlaps(self, hashes: Sequence[int], worker_ids: Iterable[int]) -> list[int]:
        """Blocks from the first on that each one holds without a gap."""
        counts: dict[int, int] = {}
        alive = _NOBODY
        for depth, one in enumerate(hashes):
            holders = self._holders.get(one, _NOBODY)
            if not depth:
                alive = holders
            elif holders != alive:
                left = set(holders)
                counts.update((worker, depth) for worker in alive if worker not in left)
                alive = tuple(worker for worker in alive if worker in left)
            if not alive:
                break
        counts.update((worker, len(hashes)) for worker in alive)
        return [counts.get(worker, 0) for worker in worker_ids]
