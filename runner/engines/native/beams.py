"""BeamSearch: the bookkeeping of one beam search. Scores in, parents and tokens out; no blocks, no logits.

Equal to transformers' `generate(num_beams=K, do_sample=False, early_stopping=False)`, version 5.24
(generation/utils.py, `_beam_search` and what it calls), float32 sums included:

  - all continuations of all beams are ranked by the sum of their log-probabilities;
  - one that ends (a stop id, or the last token allowed) becomes a hypothesis if it ranks among the first K, scored by
    sum / length ** length_penalty; the K best hypotheses are kept;
  - the K best that do not end are the next beams;
  - it is over when K hypotheses are kept and the best beam, scored at its present length, does not beat the worst.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from runner.types import FinishReason, TokenLogprob, TokenRequest

Candidates = list[tuple[int, float]]


def num_candidates(request: TokenRequest) -> int:
    """How many candidates of each beam are needed: K that do not end, and whatever may end before them."""
    params = request.sampling
    ending = max(params.beam_width, len(set(request.stop_token_ids)))
    return max(params.beam_width + ending, params.logprobs or 0)


class Pick(NamedTuple):
    """The next beam continues beam number `parent` with `token_id`."""

    parent: int
    token_id: int


class _Beam(NamedTuple):
    score: np.float32
    """Sum of log-probabilities; divided by the length penalty in a hypothesis."""
    token_ids: list[int]
    """The answer so far; with the stop id, if it ended so."""
    logprobs: list[TokenLogprob]


class BeamSearch:
    """Of one request. Feed `advance` until it returns nothing, then take `best`."""

    def __init__(self, request: TokenRequest) -> None:
        params = request.sampling
        self._width = params.beam_width
        self._penalty = params.length_penalty
        self._num_top = params.logprobs
        self._max_tokens = request.max_tokens
        self._stop_ids = frozenset(request.stop_token_ids)
        self._beams = [_Beam(np.float32(0), [], [])]
        self._hypotheses: list[_Beam] = []
        """Best first, at most K."""

    def advance(self, candidates: list[Candidates]) -> list[Pick]:
        """The next beams, best first, given the best tokens of each present beam and their log-probabilities.

        Empty when the search is over. Only then, and not if there was no candidate at all, there is a `best`.
        """
        length = len(self._beams[0].token_ids) + 1
        ranked = self._rank(candidates)
        is_last = length >= self._max_tokens
        ends = [is_last or token in self._stop_ids for _, _, token, _ in ranked]
        for entry, is_end in zip(ranked[: self._width], ends, strict=False):
            if is_end:
                beam = self._extended(entry, candidates)
                self._hypotheses.append(beam._replace(score=self._penalised(beam.score, length)))
        self._hypotheses.sort(key=lambda beam: -beam.score)  # stable: of equals, the older stays in front
        del self._hypotheses[self._width :]
        following = [entry for entry, is_end in zip(ranked, ends, strict=True) if not is_end][: self._width]
        if not following or not self._can_improve(self._penalised(following[0][0], length)):
            return []
        self._beams = [self._extended(entry, candidates) for entry in following]
        return [Pick(parent, token) for _, parent, token, _ in following]

    def _rank(self, candidates: list[Candidates]) -> list[tuple[np.float32, int, int, float]]:
        """(sum, parent, token, log-probability), best first; of equals, the first in [beams, vocabulary]."""
        entries = [
            (np.float32(logprob) + beam.score, parent, token, logprob)
            for parent, (beam, row) in enumerate(zip(self._beams, candidates, strict=True))
            for token, logprob in row
        ]
        entries.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
        return entries

    def _extended(self, entry: tuple[np.float32, int, int, float], candidates: list[Candidates]) -> _Beam:
        score, parent, token, logprob = entry
        beam = self._beams[parent]
        logprobs = beam.logprobs
        if self._num_top is not None:
            logprobs = [*logprobs, TokenLogprob(token, logprob, candidates[parent][: self._num_top])]
        return _Beam(score, [*beam.token_ids, token], logprobs)

    def _penalised(self, score: np.float32, length: int) -> np.float32:
        with np.errstate(all="ignore"):
            return np.float32(score / np.float32(np.power(np.float64(length), self._penalty)))

    def _can_improve(self, best_running: np.float32) -> bool:
        return len(self._hypotheses) < self._width or bool(best_running > self._hypotheses[-1].score)

    @property
    def has_answer(self) -> bool:
        """Whether there is a `best`."""
        return bool(self._hypotheses)

    def best(self) -> tuple[list[int], FinishReason, int | None, list[TokenLogprob] | None]:
        """The answer without its stop id, why it ended, that stop id, and log-probabilities where they were asked."""
        beam = self._hypotheses[0]
        logprobs = beam.logprobs if self._num_top is not None else None
        if beam.token_ids[-1] not in self._stop_ids:
            return beam.token_ids, "length", None, logprobs
        return beam.token_ids[:-1], "stop", beam.token_ids[-1], logprobs[:-1] if logprobs is not None else None
