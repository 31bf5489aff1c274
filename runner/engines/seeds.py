"""Seeds: the seed of each request of one engine. Knows no sampling."""

from __future__ import annotations

import itertools
import os

from runner.types import TokenRequest


class Seeds:
    """`seed` is the engine's own (--seed), None for chance."""

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._counter = itertools.count()

    def of(self, request: TokenRequest) -> int:
        """The request's; else the engine's, counted up from request to request; else chance."""
        if request.sampling.seed is not None:
            return request.sampling.seed
        if self._seed is not None:
            return self._seed + next(self._counter)
        return int.from_bytes(os.urandom(8), "little")
