"""Edits: what one request wants of a row of logits beyond what SGLang does. numpy only; knows no SGLang and no torch.

Runs in SGLang's scheduler processes (processor.py), in each rank alike: all ranks see the same logits and make the
same choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runner.engines.guidance import Matcher
from runner.engines.llamacpp.sampler import check_finite, draw_token
from runner.engines.sglang.sampling import is_drawn_by_us
from runner.types import TokenRequest

Floats = NDArray[np.float32]
_MASK = 2**64 - 1


class Edits:
    """State of one request: its grammar's place and its random numbers."""

    def __init__(self, request: TokenRequest, matcher: Matcher | None) -> None:
        self._request = request
        self._matcher = matcher
        self._num_fed = 0
        self._stop_ids = np.array(sorted(request.stop_token_ids), np.intp)
        self._draws = is_drawn_by_us(request)

    def apply(self, row: Floats, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Mask, in place, what may not come next; where we draw, mask all but the token that was drawn.

        Raises RequestError where the grammar became too complex, EngineFailed for logits that are no numbers.
        """
        if self._matcher is not None:
            for token in output[self._num_fed :]:
                self._matcher.accept(int(token))
            self._num_fed = len(output)
            self._matcher.mask(row)
        if len(output) < self._request.min_tokens and len(self._stop_ids):
            self._mask_stops(row)
        self._mask_bad_words(row, prompt, output)
        if self._draws:
            self._draw(row, len(output))

    def _mask_stops(self, row: Floats) -> None:
        """Stop ids are out, unless a grammar leaves nothing else: what is complete must end."""
        kept = row[self._stop_ids].copy()
        row[self._stop_ids] = -np.inf
        if self._matcher is not None and not np.isfinite(row.max()):
            row[self._stop_ids] = kept

    def _mask_bad_words(self, row: Floats, prompt: Sequence[int], output: Sequence[int]) -> None:
        for words in self._request.sampling.bad_words_ids:
            before = list(words[:-1])
            if not before or _tail(prompt, output, len(before)) == before:
                row[words[-1]] = -np.inf

    def _draw(self, row: Floats, position: int) -> None:
        """One random number for each place of the answer, so that a place drawn twice gives the same token."""
        sampling = self._request.sampling
        uniform = np.random.default_rng([(sampling.seed or 0) & _MASK, position]).random()
        best = float(row.max())
        check_finite(best)
        token = draw_token(row, best, sampling, uniform)
        row[:] = -np.inf
        row[token] = 0.0


def _tail(prompt: Sequence[int], output: Sequence[int], count: int) -> list[int]:
    """The last `count` tokens of prompt and output."""
    ids = list(output[-count:])
    return ids if len(ids) == count else [*prompt[len(ids) - count :], *ids]
