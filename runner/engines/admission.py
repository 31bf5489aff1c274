"""Which requests an engine can never run, and what to say of them. Plain checks for all engines; nothing is queued."""

from __future__ import annotations

import math
from collections.abc import Collection

from runner.errors import ContextOverflow, RequestError, UnsupportedField
from runner.types import SamplingParams, TokenRequest

HONOURED = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "logprobs",
    "bad_words_ids",
)
"""SamplingParams fields that our engines' samplers honour; guided decoding and beam search are claimed besides."""

_RANGES = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "presence_penalty": (-math.inf, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
}


def check_request(
    request: TokenRequest,
    *,
    engine: str,
    capabilities: Collection[str] = HONOURED,
    vocab_size: int,
    context_length: int,
    adapters: Collection[str] = (),
) -> None:
    """Raises RequestError (ContextOverflow, UnsupportedField) for one that can never run.

    `engine` is its name after `out=`, `capabilities` are those of EngineInfo, `adapters` the names of what is loaded.
    """
    if not request.token_ids:
        raise RequestError("the prompt is empty: give at least one token", field="prompt")
    _check_ids("prompt", request.token_ids, vocab_size)
    _check_ids("stop_token_ids", request.stop_token_ids, vocab_size)
    _check_length(request, context_length)
    if request.adapter is not None and request.adapter not in adapters:
        known = f"loaded are {', '.join(adapters)}" if adapters else "none is loaded; start with --lora NAME=FILE"
        raise RequestError(f"adapter {request.adapter!r} is not loaded: {known}", field="adapter")
    _check_beams(request.sampling, engine, capabilities)
    _check_sampling(request.sampling, vocab_size)


def _check_length(request: TokenRequest, context_length: int) -> None:
    prompt_len = len(request.token_ids)
    if prompt_len + request.max_tokens > context_length:
        raise ContextOverflow(
            f"prompt has {prompt_len:,} tokens and max_tokens is {request.max_tokens:,}: together more than the "
            f"context, {context_length:,}; shorten it or start with a larger --context-length",
            prompt_tokens=prompt_len,
            context_length=context_length,
            max_tokens=request.max_tokens,
        )


def _check_beams(params: SamplingParams, engine: str, capabilities: Collection[str]) -> None:
    if params.beam_width < 1:
        raise RequestError(f"beam_width must be at least 1, got {params.beam_width}", field="beam_width")
    if params.beam_width > 1 and "beam_width" not in capabilities:
        raise UnsupportedField(
            f"out={engine} has no beam search; leave beam_width at 1, got {params.beam_width}", field="beam_width"
        )
    if not math.isfinite(params.length_penalty):
        raise RequestError(
            f"length_penalty must be a finite number, got {params.length_penalty}", field="length_penalty"
        )


def _check_sampling(params: SamplingParams, vocab_size: int) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(params, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise RequestError(f"{name} must be a number from {low:g} to {high:g}, got {value}", field=name)
    if not (math.isfinite(params.repetition_penalty) and params.repetition_penalty > 0):
        raise RequestError(
            f"repetition_penalty must be above 0, got {params.repetition_penalty}", field="repetition_penalty"
        )
    if params.logprobs is not None and not 0 <= params.logprobs <= vocab_size:
        raise RequestError(f"logprobs must be from 0 to {vocab_size}, got {params.logprobs}", field="logprobs")
    _check_ids("logit_bias", params.logit_bias or (), vocab_size)
    for value in (params.logit_bias or {}).values():
        if math.isnan(value) or value == math.inf:
            raise RequestError(f"logit_bias must be finite (or -inf, which forbids), got {value}", field="logit_bias")
    for words in params.bad_words_ids:
        _check_ids("bad_words", words, vocab_size)
        if not words:
            raise RequestError("bad_words has an entry without tokens", field="bad_words")


def _check_ids(field: str, ids: Collection[int], vocab_size: int) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise RequestError(f"{field}: {wrong} is no token id; the vocabulary has {vocab_size:,} tokens", field=field)
