"""Which worker gets a request: round-robin, random, least-loaded, kv.

kv prefers the worker that has most of the prompt in its cache, weighed against the work it has. What a worker has is
predicted from what it was sent, and corrected by what it says of each prompt. Block hashes are Dynamo's: xxh3_64, seed
1337, of little-endian u32 ids, chained. The cost of a choice, in blocks, is

    overlap weight x blocks to make  +  1/2 x blocks in the making there  +  1/4 x the prompt's x running / average

What is in the making is half done on average, and is over once a prompt has been read; what a new block costs lasts, as
in a full cache it takes the place of another. (Dynamo's formula counts all of a request's blocks until its end: then a
few prompts in the making drive others from where their prefixes are, which makes more prompts to read.)
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

_SEED = 1337
_MAX_BLOCKS = 1 << 18
"""Blocks remembered; the least recently used are forgotten."""

_UNREAD_WEIGHT = 0.5
_LOAD_WEIGHT = 0.25
"""A worker with one average more to do than another is worth a quarter of a prompt: prefixes in great demand spread."""
_NOBODY: tuple[int, ...] = ()


class Prediction(NamedTuple):
    """What one choice was made by.

    `number` is that of the request, `used_before` of the one that sent each of the `overlap` blocks last; 0 where its
    prompt was still being read, so that nothing follows from a block that is not there.
    """

    number: int
    worker_id: int
    overlap: int
    used_before: list[int]


class Candidate(Protocol):
    """What is known of a worker."""

    id: int
    num_running: int
    unread_blocks: int
    """Of prompts that it has to read; without those it has cached."""


def block_hashes(token_ids: Sequence[int], block_size: int) -> list[int]:
    """One chained hash for each full block."""
    data = np.asarray(token_ids, dtype="<u4").tobytes()
    size = 4 * block_size
    hashes: list[int] = []
    for at in range(0, len(data) - size + 1, size):
        block = xxhash.xxh3_64_intdigest(data[at : at + size], _SEED)
        if hashes:
            pair = hashes[-1].to_bytes(8, "little") + block.to_bytes(8, "little")
            block = xxhash.xxh3_64_intdigest(pair, _SEED)
        hashes.append(block)
    return hashes


class Router:
    """Chooses. `block_size` in tokens, for kv."""

    def __init__(
        self, mode: str, *, block_size: int = 16, overlap_weight: float = 1.0, temperature: float = 0.0
    ) -> None:
        self.mode = mode
        self._block_size = max(1, block_size)
        self._overlap_weight = overlap_weight
        self._temperature = temperature
        self._next = 0
        self._blocks: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._rng = random.Random()
        self._held: dict[int, OrderedDict[int, int]] = {}
        """Of each worker: its blocks, the least recently sent first, with the number of the request that sent it."""
        self._num_picks = 0
        self._unread: set[int] = set()
        """Requests whose prompts may not be in the cache yet."""
        self.last: Prediction | None = None
        """Of the last pick; None where nothing is predicted."""

    def pick(self, candidates: Sequence[Candidate], token_ids: Sequence[int]) -> int:
        """The place of the chosen one in `candidates`, which are not empty and in a stable order."""
        if self.mode == "random":
            return self._rng.randrange(len(candidates))
        if self.mode == "least-loaded":
            least = min(candidate.num_running for candidate in candidates)
            best = [at for at, candidate in enumerate(candidates) if candidate.num_running == least]
            return self._rng.choice(best)
        if self.mode == "kv":
            return self._pick_kv(candidates, token_ids)
        self._next += 1
        return (self._next - 1) % len(candidates)

    def num_blocks(self, token_ids: Sequence[int]) -> int:
        """What its worker has to make for the request of the last pick."""
        return len(token_ids) // self._block_size + 1 - (self.last.overlap if self.last is not None else 0)

    def _pick_kv(self, candidates: Sequence[Candidate], token_ids: Sequence[int]) -> int:
        hashes = block_hashes(token_ids, self._block_size)
        overlaps = self._overlaps(hashes, candidates)
        at = self._draw(self._costs(len(hashes), overlaps, candidates), candidates)
        self.last = self._sent(candidates[at].id, hashes, overlaps[at])
        while len(self._blocks) > _MAX_BLOCKS:
            one, held = self._blocks.popitem(last=False)
            for worker in held:
                self._held[worker].pop(one, None)
        return at

    def _costs(self, num_blocks: int, overlaps: list[int], candidates: Sequence[Candidate]) -> list[float]:
        """See the head of this file."""
        total = sum(candidate.num_running for candidate in candidates)
        load = _LOAD_WEIGHT * num_blocks * len(candidates) / max(1, total)
        return [
            self._overlap_weight * (num_blocks - overlap)
            + _UNREAD_WEIGHT * candidate.unread_blocks
            + load * candidate.num_running
            for candidate, overlap in zip(candidates, overlaps, strict=True)
        ]

    def _sent(self, chosen: int, hashes: list[int], overlap: int) -> Prediction:
        """The worker will have these blocks."""
        mine = self._held.setdefault(chosen, OrderedDict())
        senders = (mine.get(one, 0) for one in hashes[:overlap])
        used_before = [0 if sender in self._unread else sender for sender in senders]
        self._num_picks += 1
        self._unread.add(self._num_picks)
        for one in hashes:
            held = self._blocks.get(one, _NOBODY)
            if chosen not in held:
                self._blocks[one] = (*held, chosen)
            self._blocks.move_to_end(one)
            mine[one] = self._num_picks
            mine.move_to_end(one)
        return Prediction(self._num_picks, chosen, overlap, used_before)

    def correct(self, prediction: Prediction, cached_tokens: int) -> int:
        """The worker says how much of the prompt it had; returns how many of the predicted blocks it had not.

        What it was sent before the first block that it has thrown away is gone too: caches keep what was used last.
        One block less is none: engines read the last tokens of a prompt anew.
        """
        num_cached = min(prediction.overlap, cached_tokens // self._block_size)
        if num_cached >= prediction.overlap - 1:
            return 0
        gone = prediction.used_before[num_cached]
        mine = self._held.get(prediction.worker_id, OrderedDict())
        while mine:
            one, used = next(iter(mine.items()))
            if used > gone:
                break
            del mine[one]
            self._without(one, prediction.worker_id)
        return prediction.overlap - num_cached

    def settle(self, prediction: Prediction) -> None:
        """Its prompt has been read, or never will be. Safe twice."""
        self._unread.discard(prediction.number)

    def _without(self, one: int, worker_id: int) -> None:
        left = tuple(worker for worker in self._blocks.get(one, _NOBODY) if worker != worker_id)
        if left:
            self._blocks[one] = left
        else:
            self._blocks.pop(one, None)

    def _overlaps(self, hashes: list[int], candidates: Sequence[Candidate]) -> list[int]:
        """Blocks from the first on that each one holds without a gap."""
        counts: dict[int, int] = {}
        alive: tuple[int, ...] = _NOBODY
        for depth, one in enumerate(hashes):
            held = self._blocks.get(one, _NOBODY)
            if not depth:
                alive = held
            elif held != alive:
                left = set(held)
                counts.update((worker, depth) for worker in alive if worker not in left)
                alive = tuple(worker for worker in alive if worker in left)
            if not alive:
                break
        counts.update((worker, len(hashes)) for worker in alive)
        return [counts.get(candidate.id, 0) for candidate in candidates]

    def _draw(self, costs: list[float], candidates: Sequence[Candidate]) -> int:
        """The least cost; with a temperature, softmax over the normalised negative costs.

        Of equals the one that was sent the fewest blocks: new prefixes spread over all caches.
        """
        low, high = min(costs), max(costs)
        if self._temperature <= 0 or low == high:
            equals = [at for at, cost in enumerate(costs) if cost == low]
            held = [len(self._held.get(candidates[at].id, _NOBODY)) for at in equals]
            fewest = min(held)
            return self._rng.choice([at for at, num in zip(equals, held, strict=True) if num == fewest])
        weights = [math.exp(-(cost - low) / (high - low) / self._temperature) for cost in costs]
        return self._rng.choices(range(len(costs)), weights)[0]

    def forget(self, worker_id: int) -> None:
        """Its cache is gone."""
        for one in self._held.pop(worker_id, ()):
            self._without(one, worker_id)
