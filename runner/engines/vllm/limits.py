"""What a bare EngineCore may be sent: the launcher's own checks where no guard of ours stands before it (headless).

A request that vLLM's own front half would refuse ends or deafens EngineCore (request_guard.py says how); so everything
that its SamplingParams checks is checked here, by the ranges of vllm/sampling_params.py.
"""

from __future__ import annotations

import math

import msgspec

from runner.errors import RequestError
from runner.types import TokenRequest

_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-9, 2.0),
}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model on one engine."""

    vocab_size: int
    context_length: int
    max_logprobs: int = 20
    """-1 is no limit."""
    may_seed: bool = True
    """Whether sampling by a seed is harmless: on a CPU it ends EngineCore when a prompt is read in pieces (rank.py)."""


def check(request: TokenRequest, limits: Limits) -> None:
    """Raises RequestError for a request that would harm EngineCore."""
    check_prompt(request.token_ids, limits)
    _check_counts(request, limits)
    sampling = request.sampling
    for name, (low, high) in _RANGES.items():
        _in_range(name, getattr(sampling, name), low, high)
    _in_range("top_k", sampling.top_k, -1, 2**31 - 1)
    if sampling.seed is not None:
        _in_range("seed", sampling.seed, -(2**63), 2**63 - 1)
        _check_seed(request, limits)
    for value in (sampling.logit_bias or {}).values():
        _in_range("logit_bias", value, -1e9, 1e9)
    _check_ids("logit_bias", sampling.logit_bias or (), limits)
    _check_ids("stop_token_ids", request.stop_token_ids, limits)
    for word in sampling.bad_words_ids:
        if not word:
            raise RequestError("bad_words: one has no token", field="bad_words")
        _check_ids("bad_words", word, limits)


def check_prompt(token_ids: list[int], limits: Limits | None) -> None:
    """Raises RequestError for a prompt that would."""
    if limits is None:
        return
    if not 0 < len(token_ids) < limits.context_length:
        raise RequestError(f"the prompt has {len(token_ids)} tokens; allowed are 1 to {limits.context_length - 1}")
    _check_ids("prompt", token_ids, limits)


def _check_counts(request: TokenRequest, limits: Limits) -> None:
    room = limits.context_length - len(request.token_ids)
    if request.max_tokens < 1:
        raise RequestError(f"max_tokens: got {request.max_tokens}; allowed are 1 to {room}", field="max_tokens")
    if not 0 <= request.min_tokens <= request.max_tokens:
        raise RequestError(
            f"min_tokens: got {request.min_tokens}; allowed are 0 to max_tokens ({request.max_tokens})",
            field="min_tokens",
        )
    logprobs = request.sampling.logprobs
    most = limits.vocab_size if limits.max_logprobs < 0 else limits.max_logprobs
    if logprobs is not None and not 0 <= logprobs <= most:
        raise RequestError(f"logprobs: got {logprobs}; allowed are 0 to {most}", field="logprobs")


def _check_seed(request: TokenRequest, limits: Limits) -> None:
    if request.sampling.temperature > 0 and not limits.may_seed:
        raise RequestError(
            "seed: with --vllm-mode headless on a CPU it can end vLLM, whose CPU generator cannot go back; leave the "
            "seed out, or start without --vllm-mode headless (our worker mends it)",
            field="seed",
        )


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) if isinstance(value, float) else True) or not low <= value <= high:
        raise RequestError(f"{name}: got {value}; allowed is {low:g} to {high:g}", field=name)


def _check_ids(name: str, ids: object, limits: Limits) -> None:
    """Token ids: a list, a tuple, or the keys of a dictionary."""
    for token in ids:  # type: ignore[attr-defined]
        if not isinstance(token, int) or not 0 <= token < limits.vocab_size:
            raise RequestError(
                f"{name}: token id {token} is outside of the vocabulary (0 to {limits.vocab_size - 1})", field=name
            )
