"""SamplingState: what the sampler knows of one token stream. Torch-free; opaque to the core.

Owns the grammar's place, the seed and all that can be worked out of a request once. Tokens stay the sequence's: a state
catches up with them when it is asked, so that beams may be forked and continued by somebody else.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runner.engines.guidance import Matcher
from runner.engines.native.beams import num_candidates
from runner.types import TokenRequest

Ints = NDArray[np.int64]

_MASK = 2**64 - 1


class Stream(Protocol):
    """The part of a core Sequence that the sampler reads."""

    request: TokenRequest
    token_ids: list[int]
    """Prompt and output."""
    prompt_len: int
    sampling: SamplingState


class Tally:
    """Tokens that penalties are about, in order of appearance: of the output, and of the prompt for repetition.

    Kept up from token to token; never rebuilt.
    """

    def __init__(self, *, sees_prompt: bool) -> None:
        self._sees_prompt = sees_prompt
        self._columns: dict[int, int] = {}
        self._num_seen = 0
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    @property
    def ids(self) -> Ints:
        """Distinct tokens."""
        return self._ids[: len(self._columns)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each is in the output."""
        return self._counts[: len(self._columns)]

    def advance(self, token_ids: list[int], prompt_len: int) -> set[int]:
        """Take in what is new of `token_ids`, prompt and output. Returns the places in `ids` that changed."""
        first = self._num_seen if self._sees_prompt else max(self._num_seen, prompt_len)
        changed = set()
        for at in range(first, len(token_ids)):
            column = self._columns.setdefault(token_ids[at], len(self._columns))
            if column == len(self._ids):
                self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[column] = token_ids[at]
            self._counts[column] += at >= prompt_len
            changed.add(column)
        self._num_seen = len(token_ids)
        return changed


class SamplingState:
    """Made by `make_state`; `fork` where beams part."""

    def __init__(self, request: TokenRequest, seed: int, matcher: Matcher | None) -> None:
        params = request.sampling
        self.request = request
        self.params = params
        self.seed = seed & _MASK
        self.matcher = matcher
        self.slot: int | None = None
        """Row of the device's penalty tables."""
        self.num_head = 0
        """How many best tokens top_p needed the last time, for a guess; 0: nobody knows."""
        self.num_candidates = num_candidates(request) if params.beam_width > 1 else 0
        self.num_top = None if self.num_candidates else params.logprobs
        """Asked log-probabilities; a beam search makes its own of candidates."""
        self.is_greedy = params.temperature == 0.0
        repeats = params.repetition_penalty != 1.0
        is_penalised = repeats or bool(params.presence_penalty or params.frequency_penalty)
        self.tally = Tally(sees_prompt=repeats) if is_penalised else None
        self.has_fixed_edits = bool(params.logit_bias or params.bad_words_ids or is_penalised)
        self.bias = _bias_arrays(params.logit_bias)
        self.stop_ids: Ints = np.array(sorted(set(request.stop_token_ids)), np.int64)
        self._single_bad_ids = [words[0] for words in params.bad_words_ids if len(words) == 1]
        self._bad_phrases = [words for words in params.bad_words_ids if len(words) > 1]
        self._num_matched = 0
        self._is_argmax = self.is_greedy and not self.has_fixed_edits and not self.num_candidates

    def fork(self) -> SamplingState:
        """A state of its own at the same place."""
        twin = SamplingState(self.request, self.seed, self.matcher.fork() if self.matcher is not None else None)
        twin._num_matched = self._num_matched
        return twin

    def is_argmax(self, num_output: int) -> bool:
        """Whether the next token is the best of its raw row, if the grammar (if any) allows it."""
        return self._is_argmax and num_output >= self.request.min_tokens

    def is_plain(self, num_output: int) -> bool:
        """Whether this token and all after it are the best of their raw rows, and nothing else is asked of these."""
        return self.is_argmax(num_output) and self.matcher is None and self.num_top is None

    def edits(self, num_output: int) -> bool:
        """Whether logits are changed before the next token is chosen."""
        return self.has_fixed_edits or self.matcher is not None or num_output < self.request.min_tokens

    def grammar_bits(self, token_ids: list[int], prompt_len: int) -> NDArray[np.uint8]:
        """Tokens that the grammar and min_tokens allow next, one bit each, lowest first. Raises as Matcher.bits does.

        Stop ids wait for min_tokens, unless the grammar leaves nothing else: what is complete must end.
        """
        assert self.matcher is not None
        for token in token_ids[prompt_len + self._num_matched :]:
            self.accept(token)
        bits = self.matcher.bits()
        if len(token_ids) - prompt_len < self.request.min_tokens and len(self.stop_ids):
            without = bits.copy()
            np.bitwise_and.at(without, self.stop_ids >> 3, ~(1 << (self.stop_ids & 7)).astype(np.uint8))
            if without.any():
                return without
        return bits

    def forbidden(self, token_ids: list[int], num_output: int) -> list[int]:
        """Ids that would complete a bad word, and stop ids before min_tokens (a grammar sees to those itself)."""
        ids = list(self._single_bad_ids)
        for words in self._bad_phrases:
            head = words[:-1]
            if token_ids[-1] == head[-1] and tuple(token_ids[-len(head) :]) == head:
                ids.append(words[-1])
        if num_output < self.request.min_tokens and self.matcher is None:
            ids += self.stop_ids.tolist()
        return ids

    def accept(self, token: int) -> bool:
        """`token`, not a stop id, joins the answer. Returns whether nothing can follow it. Raises as Matcher.accept."""
        if self.matcher is None:
            return False
        self.matcher.accept(token)
        self._num_matched += 1
        return self.matcher.is_complete


def make_state(request: TokenRequest, *, seed: int, matcher: Matcher | None = None) -> SamplingState:
    """The state of a new request. Draws depend on `seed` (any int, taken modulo 2**64) and the output's length only."""
    return SamplingState(request, seed, matcher)


def uniforms(seeds: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each pair: splitmix64 (Steele, Lea, Flood 2014) of the counter, keyed by the seed.

    The largest is 1 - 2**-52, so that `uniform * total < total` in float64.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    mixed = _mix(_mix(seeds + golden) + (counters + np.uint64(1)) * golden)
    return (mixed >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _bias_arrays(bias: dict[int, float] | None) -> tuple[Ints, NDArray[np.float32]]:
    return np.array(list(bias or ()), np.int64), np.array(list((bias or {}).values()), np.float32)
