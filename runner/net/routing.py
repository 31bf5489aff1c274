"""Which worker gets a request: round-robin, random, least-loaded, kv.

kv prefers the worker that has most of the prompt in its cache, weighed against the work it has. What a worker has is
predicted from what it was sent. Block hashes are Dynamo's: xxh3_64, seed 1337, of little-endian u32 ids, chained.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import xxhash

_SEED = 1337
_MAX_BLOCKS = 1 << 18
"""Blocks remembered; the least recently used are forgotten."""

_NOBODY: tuple[int, ...] = ()


class Candidate(Protocol):
    """What is known of a worker."""

    id: int
    num_running: int
    active_blocks: int


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
        self._num_cached = 0

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
        """What the request of the last pick weighs: blocks that its worker holds already cost nothing more."""
        return len(token_ids) // self._block_size + 1 - self._num_cached

    def _pick_kv(self, candidates: Sequence[Candidate], token_ids: Sequence[int]) -> int:
        hashes = block_hashes(token_ids, self._block_size)
        overlaps = self._overlaps(hashes, candidates)
        costs = [
            self._overlap_weight * (len(hashes) - overlap) + candidate.active_blocks
            for candidate, overlap in zip(candidates, overlaps, strict=True)
        ]
        at = self._draw(costs)
        self._num_cached = overlaps[at]
        chosen = candidates[at].id
        for one in hashes:
            held = self._blocks.get(one, _NOBODY)
            if chosen not in held:
                self._blocks[one] = (*held, chosen)
            self._blocks.move_to_end(one)
        while len(self._blocks) > _MAX_BLOCKS:
            self._blocks.popitem(last=False)
        return at

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

    def _draw(self, costs: list[float]) -> int:
        """The least cost; with a temperature, softmax over the normalised negative costs."""
        low, high = min(costs), max(costs)
        if self._temperature <= 0 or low == high:
            return self._rng.choice([at for at, cost in enumerate(costs) if cost == low])
        weights = [math.exp(-(cost - low) / (high - low) / self._temperature) for cost in costs]
        return self._rng.choices(range(len(costs)), weights)[0]

    def forget(self, worker_id: int) -> None:
        """Its cache is gone."""
        for one, held in list(self._blocks.items()):
            if worker_id in held:
                self._blocks[one] = tuple(worker for worker in held if worker != worker_id)
