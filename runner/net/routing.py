"""Which worker gets a request: round-robin, random, least-loaded, kv.

kv prefers the worker that has most of the prompt in its cache, weighed against the work it has. What a worker has is
predicted from what it was sent, and corrected by what it says: of its cache (KV events), or at least of each prompt.
The cost of a choice, in blocks, is

    overlap weight x blocks to make  +  1/2 x blocks in the making there  +  1/4 x the prompt's x running / average

What is in the making is half done on average, and is over once a prompt has been read; what a new block costs lasts, as
in a full cache it takes the place of another. (Dynamo's formula counts all of a request's blocks until its end: then a
few prompts in the making drive others from where their prefixes are, which makes more prompts to read.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from runner.net.block_hashes import block_hashes
from runner.net.block_index import BlockIndex

_UNREAD_WEIGHT = 0.5
_LOAD_WEIGHT = 0.25
"""A worker with one average more to do than another is worth a quarter of a prompt: prefixes in great demand spread."""


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
        self._rng = random.Random()
        self._index = BlockIndex()
        self._trusted: set[int] = set()
        """Workers that tell all that happens to their caches."""
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
        overlaps = self._index.overlaps(hashes, [candidate.id for candidate in candidates])
        at = self._draw(self._costs(len(hashes), overlaps, candidates), candidates)
        self.last = self._sent(candidates[at].id, hashes, overlaps[at])
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
        senders = self._index.used(chosen, hashes[:overlap])
        used_before = [0 if sender in self._unread else sender for sender in senders]
        self._num_picks += 1
        self._unread.add(self._num_picks)
        self._index.add(chosen, hashes, self._num_picks)
        return Prediction(self._num_picks, chosen, overlap, used_before)

    def correct(self, prediction: Prediction, cached_tokens: int) -> int:
        """The worker says how much of the prompt it had; returns how many of the predicted blocks it had not.

        What it was sent before the first block that it has thrown away is gone too: caches keep what was used last.
        One block less is none: engines read the last tokens of a prompt anew. A worker that is trusted has said itself
        what is gone.
        """
        num_cached = min(prediction.overlap, cached_tokens // self._block_size)
        if num_cached >= prediction.overlap - 1:
            return 0
        if prediction.worker_id not in self._trusted:
            self._index.remove_until(prediction.worker_id, prediction.used_before[num_cached])
        return prediction.overlap - num_cached

    def settle(self, prediction: Prediction) -> None:
        """Its prompt has been read, or never will be. Safe twice."""
        self._unread.discard(prediction.number)

    # what workers say (KV events)

    def trust(self, worker_id: int, *, is_trusted: bool) -> None:
        """Whether all that happens to its cache is told here from now on."""
        if is_trusted:
            self._trusted.add(worker_id)
        else:
            self._trusted.discard(worker_id)

    def stored(self, worker_id: int, hashes: Sequence[int]) -> None:
        """It holds these blocks."""
        self._index.add(worker_id, hashes, self._num_picks)

    def removed(self, worker_id: int, hashes: Sequence[int]) -> None:
        """It has thrown these away."""
        self._index.remove(worker_id, hashes)

    def num_held(self, worker_id: int) -> int:
        """Blocks of prompts that it is believed to have."""
        return self._index.num_held(worker_id)

    def forget(self, worker_id: int) -> None:
        """Its cache is gone."""
        self._index.forget(worker_id)
        self._trusted.discard(worker_id)

    def _draw(self, costs: list[float], candidates: Sequence[Candidate]) -> int:
        """The least cost; with a temperature, softmax over the normalised negative costs.

        Of equals the one that was sent the fewest blocks: new prefixes spread over all caches.
        """
        low, high = min(costs), max(costs)
        if self._temperature <= 0 or low == high:
            equals = [at for at, cost in enumerate(costs) if cost == low]
            held = [self.num_held(candidates[at].id) for at in equals]
            fewest = min(held)
            return self._rng.choice([at for at, num in zip(equals, held, strict=True) if num == fewest])
        weights = [math.exp(-(cost - low) / (high - low) / self._temperature) for cost in costs]
        return self._rng.choices(range(len(costs)), weights)[0]
