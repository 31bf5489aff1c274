"""A TokenRequest as SGLang's sampling parameters (sglang/srt/sampling/sampling_params.py), or the reason why not.

SGLang trusts its ids: one outside of the vocabulary kills its scheduler, so they are checked here. Knows no Engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from runner.errors import RequestError
from runner.types import SamplingParams, TokenRequest

NATIVE = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
)
"""What SGLang does itself when it is given token ids only."""
STEERED = (
    "typical_p",
    "seed",
    "bad_words_ids",
    "min_tokens",
    "guided.json_schema",
    "guided.json_object",
    "guided.regex",
    "guided.grammar",
    "guided.choice",
)
"""What our logit processor does in SGLang's scheduler: without a tokenizer SGLang has no grammars and no minimum, and
its seeds need a slower mode of the whole engine."""
REQUEST_KEY = "llmrun"
"""Of `custom_params`: our request as JSON, for the processor."""
_MAX_LOGPROBS = 1000
_NEUTRAL = SamplingParams()
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


class Limits(msgspec.Struct, frozen=True):
    """What the loaded model allows."""

    vocab_size: int
    context_length: int


def is_drawn_by_us(request: TokenRequest) -> bool:
    """Whether our processor draws the token, and SGLang only takes what is left."""
    sampling = request.sampling
    return sampling.temperature > 0 and (sampling.seed is not None or sampling.typical_p < 1.0)


def is_steered(request: TokenRequest) -> bool:
    """Whether the request needs our processor at all."""
    sampling = request.sampling
    has_minimum = bool(request.min_tokens and request.stop_token_ids)
    return bool(sampling.guided is not None or sampling.bad_words_ids or has_minimum or is_drawn_by_us(request))


def sampling_map(request: TokenRequest, engine_stops: frozenset[int]) -> dict[str, Any]:
    """For `sampling_params` of Engine.async_generate.

    `engine_stops`: end tokens of the model's config, at which SGLang stops whether asked or not. Only where all of
    them are asked for may it stop by itself; else stream.py stops.
    """
    sampling = request.sampling
    stops = set(request.stop_token_ids)
    fields: dict[str, Any] = {"max_new_tokens": request.max_tokens, "ignore_eos": True}
    if stops and engine_stops <= stops:
        fields |= {"stop_token_ids": sorted(stops), "ignore_eos": False}
    if is_drawn_by_us(request) or sampling.temperature == 0:
        fields["temperature"] = 0.0
    else:
        fields |= {"temperature": sampling.temperature, "min_p": sampling.min_p}
        fields |= {"top_p": sampling.top_p, "top_k": sampling.top_k or -1} if sampling.top_p > 0 else {"top_k": 1}
    for name in _PENALTIES:
        if getattr(sampling, name) != getattr(_NEUTRAL, name):
            fields[name] = getattr(sampling, name)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if is_steered(request):
        told = msgspec.structs.replace(request, token_ids=[])
        fields["custom_params"] = {REQUEST_KEY: msgspec.json.encode(told).decode()}
    return fields


def check_request(request: TokenRequest, limits: Limits) -> None:
    """Raises RequestError naming the field for what would harm the engine or has no meaning."""
    num_prompt, sampling = len(request.token_ids), request.sampling
    if not num_prompt:
        raise RequestError("the prompt has no tokens", field="messages")
    if num_prompt >= limits.context_length:
        raise RequestError(
            f"the prompt has {num_prompt:,} tokens, the context is {limits.context_length:,}; shorten it",
            field="messages",
        )
    if request.max_tokens < 1 or not 0 <= request.min_tokens <= request.max_tokens:
        raise RequestError(
            f"max_tokens must be at least 1 and min_tokens from 0 to max_tokens, got {request.max_tokens} and "
            f"{request.min_tokens}",
            field="max_tokens",
        )
    if num_prompt + request.max_tokens > limits.context_length:
        raise RequestError(
            f"the prompt has {num_prompt:,} tokens and {request.max_tokens:,} are asked for, the context is "
            f"{limits.context_length:,}; ask for less",
            field="max_tokens",
        )
    _check_ids("messages", request.token_ids, limits)
    _check_ids("stop_token_ids", request.stop_token_ids, limits)
    _check_ids("logit_bias", sampling.logit_bias or (), limits)
    for words in sampling.bad_words_ids:
        if not words:
            raise RequestError("a bad word has no tokens", field="bad_words")
        _check_ids("bad_words", words, limits)
    _check_numbers(sampling)
    if sampling.logprobs is not None and is_drawn_by_us(request):
        raise RequestError(
            "out=sglang gives log-probabilities without a seed and typical_p only; leave one of them out",
            field="logprobs",
        )


def _check_ids(field: str, ids: Iterable[int], limits: Limits) -> None:
    for token in ids:
        if not 0 <= token < limits.vocab_size:
            raise RequestError(f"{field}: token id {token} is not from 0 to {limits.vocab_size - 1}", field=field)


def _check_numbers(sampling: SamplingParams) -> None:
    """Also those that SGLang would check itself, since it does not see them all when we draw."""
    ranges = {"temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "typical_p": (0.0, 1.0)}
    ranges |= {"repetition_penalty": (0.0, 2.0), "presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0)}
    for name, (low, high) in ranges.items():
        value = getattr(sampling, name)
        is_open = name in ("typical_p", "repetition_penalty")  # 0 itself is out
        if not low <= value <= high or (is_open and value == 0.0):
            raise RequestError(
                f"{name} must be from {low:g} to {high:g}{', without 0' if is_open else ''}, got {value:g}", field=name
            )
    if sampling.top_k < 0:
        raise RequestError(f"top_k must be 0 (off) or more, got {sampling.top_k}", field="top_k")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= _MAX_LOGPROBS:
        raise RequestError(f"logprobs must be from 0 to {_MAX_LOGPROBS}, got {sampling.logprobs}", field="logprobs")
    if any(not math.isfinite(bias) for bias in (sampling.logit_bias or {}).values()):
        raise RequestError("logit_bias: a bias is not finite", field="logit_bias")
