"""Sampler: one request's way from a row of logits to a token id. numpy only; knows nothing of llama.cpp.

Order, as vLLM's (its V1 sampler): guided mask, min_tokens, logit_bias, bad words, penalties (repetition over prompt and
output, presence and frequency over the output), temperature, min_p, top_k, top_p, typical_p, one draw.
Log-probabilities are of the raw logits, before all of that, as OpenAI's and vLLM's are.

Why numpy and not llama.cpp's sampler chains, microseconds a row of 32,000 on one core (numpy / chain): greedy in a
batch 1.5 / 40; top_k 40 + top_p 55 / 26; top_p alone 217 / 1371; the whole vocabulary 123 / 424; penalties and top_k
55 / 112.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runner.engines.guidance import Matcher
from runner.errors import EngineFailed
from runner.types import SamplingParams, TokenLogprob, TokenRequest

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

_BLOCK = 64
_SUM_BLOCK = 128
_NUCLEUS_GUESS = 128
"""top_p's nucleus is looked for among this many best tokens first."""


class Sampler:
    """State of one request: its random numbers, what was said so far, its grammar."""

    def __init__(self, request: TokenRequest, *, vocab_size: int, seed: int, matcher: Matcher | None = None) -> None:
        params = request.sampling
        self.params = params
        self.matcher = matcher
        self.is_greedy = params.temperature == 0.0
        self._random = np.random.default_rng(seed & (2**64 - 1))
        self._stop_ids = np.array(sorted(request.stop_token_ids), np.intp)
        self._min_tokens = request.min_tokens
        self._bias = _bias_arrays(params.logit_bias)
        self._seen = _seen_mask(request.token_ids, vocab_size) if params.repetition_penalty != 1.0 else None
        counted = params.presence_penalty or params.frequency_penalty
        self._counts = np.zeros(vocab_size, np.int32) if counted else None
        self._is_guided = matcher is not None
        self._always_edits = bool(
            self._bias is not None or params.bad_words_ids or self._seen is not None or self._counts is not None
        )

    def is_plain(self, num_output: int) -> bool:
        """Whether the next token is just the argmax of its row."""
        return self.is_greedy and not self._edits(num_output)

    def _edits(self, num_output: int) -> bool:
        return self._is_guided or self._always_edits or num_output < self._min_tokens

    def choose(self, row: Floats, tokens: Sequence[int], num_output: int) -> int:
        """The next token for `row` [vocabulary], which is left unchanged; `tokens` is prompt and output so far."""
        if self.is_greedy and not self._always_edits and self.matcher is not None:
            token = int(row.argmax())
            if self.matcher.allows(token) and num_output >= self._min_tokens:
                return token  # no mask is needed to know the best allowed token
        if self._edits(num_output):
            row = self._edited(row, tokens, num_output)
        if self.is_greedy:
            token = int(row.argmax())
            check_finite(float(row[token]))
            return token
        return self._draw(row)

    def accept(self, token: int) -> None:
        """`token` (not a stop token) was added to the output."""
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1

    def _edited(self, row: Floats, tokens: Sequence[int], num_output: int) -> Floats:
        row = row.copy()
        if self.matcher is not None:
            self.matcher.mask(row)
        if num_output < self._min_tokens and len(self._stop_ids):
            self._mask_stops(row)
        if self._bias is not None:
            row[self._bias[0]] += self._bias[1]
        for words in self.params.bad_words_ids:
            if len(words) - 1 <= len(tokens) and list(words[:-1]) == list(tokens[len(tokens) - len(words) + 1 :]):
                row[words[-1]] = -np.inf
        self._penalise(row)
        return row

    def _mask_stops(self, row: Floats) -> None:
        """Stop ids are out, unless a grammar leaves nothing else: what is complete must end."""
        kept = row[self._stop_ids].copy()
        row[self._stop_ids] = -np.inf
        if self.matcher is not None and not np.isfinite(row.max()):
            row[self._stop_ids] = kept

    def _penalise(self, row: Floats) -> None:
        params = self.params
        if self._seen is not None:
            ids = np.flatnonzero(self._seen)
            values = row[ids]
            row[ids] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        if self._counts is not None:
            ids = np.flatnonzero(self._counts)
            row[ids] -= params.frequency_penalty * self._counts[ids] + params.presence_penalty

    def _draw(self, row: Floats) -> int:
        best = float(row.max())
        check_finite(best)
        return draw_token(row, best, self.params, self._random.random())


def draw_token(row: Floats, best: float, params: SamplingParams, uniform: float) -> int:
    """Temperature, truncation and the draw: a token of `row` [vocabulary], whose largest value is `best`, finite."""
    ids: Ids | None = None  # None is the whole vocabulary
    logits = row
    if 0 < params.top_k < len(row):  # first, since it is cheap; it commutes with temperature and min_p
        ids, logits = _pick(ids, logits, top_ids(row, params.top_k))
    logits = (logits - np.float32(best)) / np.float32(params.temperature)
    if params.min_p > 0.0:
        ids, logits = _pick(ids, logits, np.flatnonzero(logits >= math.log(params.min_p)))
    if params.top_p < 1.0:
        ids, logits = _pick(ids, logits, nucleus(logits, params.top_p))
    if params.typical_p < 1.0:
        ids, logits = _pick(ids, logits, typical(logits, params.typical_p))
    chosen = draw(logits, uniform)
    return chosen if ids is None else int(ids[chosen])


def _pick(ids: Ids | None, logits: Floats, chosen: Ids) -> tuple[Ids, Floats]:
    return (chosen if ids is None else ids[chosen]), logits[chosen]


def _bias_arrays(bias: dict[int, float] | None) -> tuple[Ids, Floats] | None:
    if not bias:
        return None
    return np.array(list(bias), np.intp), np.array(list(bias.values()), np.float32)


def _seen_mask(tokens: Sequence[int], vocab_size: int) -> NDArray[np.bool_]:
    seen = np.zeros(vocab_size, np.bool_)
    seen[np.array(tokens, np.intp)] = True
    return seen


def check_finite(best: float) -> None:
    """Raises EngineFailed when the largest logit of a row is NaN or infinite: nothing can be chosen from it."""
    if not math.isfinite(best):
        raise EngineFailed(f"the model computed no usable logits (the largest is {best}); the GGUF file may be broken")


def draw(logits: Floats, uniform: float) -> int:
    """Index drawn with probability softmax(logits), largest logit <= 0; inverse of the cumulative sum at `uniform`.

    Of many, the sum is taken of blocks first and then inside one: half the time at 32,000 and at 150,000.
    """
    weights = np.exp(logits)
    if len(weights) <= _SUM_BLOCK**2:
        return _invert(weights, uniform)[0]
    end = len(weights) // _SUM_BLOCK * _SUM_BLOCK
    sums = np.append(weights[:end].reshape(-1, _SUM_BLOCK).sum(axis=1), weights[end:].sum())
    block, share = _invert(sums, uniform)
    start = block * _SUM_BLOCK
    return start + _invert(weights[start : start + _SUM_BLOCK], share)[0]


def _invert(weights: Floats, uniform: float) -> tuple[int, float]:
    """First index whose cumulative weight exceeds `uniform` of the total, and how far into it that is (0 to 1)."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    target = uniform * cumulative[-1]
    index = min(int(np.searchsorted(cumulative, target, side="right")), int(np.flatnonzero(weights)[-1]))
    share = (target - cumulative[index] + weights[index]) / weights[index]
    return index, min(max(float(share), 0.0), 1.0)


def top_ids(logits: Floats, count: int) -> Ids:
    """Indices of the `count` largest values, best first; equal values in index order.

    The count-th largest of the maxima of blocks of 64 is a lower bound for the count-th largest value, so only few
    values have to be sorted: 20 us instead of 250 us for 40 of 32,000.
    """
    if count >= len(logits):
        candidates: Ids = np.arange(len(logits))
    else:
        bound = _lower_bound(logits, count)
        candidates = np.flatnonzero(logits >= bound) if bound is not None else np.arange(len(logits))
    order = np.argsort(-logits[candidates], kind="stable")[:count]
    return candidates[order]


def _lower_bound(logits: Floats, count: int) -> np.float32 | None:
    num_blocks = len(logits) // _BLOCK
    if num_blocks < 2 * count:
        if len(logits) <= 4 * count:
            return None
        return np.float32(np.partition(logits, len(logits) - count)[len(logits) - count])
    maxima = logits[: num_blocks * _BLOCK].reshape(_BLOCK, num_blocks).max(axis=0)  # strided: a tenth of the time
    return np.float32(np.partition(maxima, num_blocks - count)[num_blocks - count])


def nucleus(logits: Floats, top_p: float) -> Ids:
    """The smallest set of best tokens whose probability reaches `top_p`, best first; at least one."""
    if top_p <= 0.0:
        return top_ids(logits, 1)
    total = float(np.exp(logits).sum(dtype=np.float64))
    count = min(_NUCLEUS_GUESS, len(logits))
    while True:
        ids = top_ids(logits, count)
        cumulative = np.cumsum(np.exp(logits[ids]), dtype=np.float64)
        if cumulative[-1] >= top_p * total or count == len(logits):
            return ids[: int(np.searchsorted(cumulative, top_p * total)) + 1]
        count = min(8 * count, len(logits))


def typical(logits: Floats, typical_p: float) -> Ids:
    """Locally typical sampling (Meister et al. 2022): tokens of surprise nearest to the entropy, mass `typical_p`."""
    log_probabilities = logits - _log_sum_exp(logits)
    probabilities = np.exp(log_probabilities)
    entropy = -np.sum(probabilities * np.where(probabilities > 0, log_probabilities, 0.0), dtype=np.float64)
    order = np.argsort(np.abs(-log_probabilities - entropy), kind="stable")
    cumulative = np.cumsum(probabilities[order], dtype=np.float64)
    return order[: int(np.searchsorted(cumulative, typical_p * cumulative[-1])) + 1]


def _log_sum_exp(row: Floats) -> float:
    best = float(row.max())
    return best + math.log(float(np.exp(row - np.float32(best)).sum(dtype=np.float64)))


def token_logprob(row: Floats, token: int, count: int) -> TokenLogprob:
    """Natural log-probability of `token` and of the `count` likeliest ones, best first, from raw logits."""
    norm = _log_sum_exp(row)
    best = top_ids(row, count) if count else ()
    return TokenLogprob(token, float(row[token]) - norm, [(int(index), float(row[index]) - norm) for index in best])
