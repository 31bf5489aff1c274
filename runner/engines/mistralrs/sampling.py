"""A TokenRequest as the fields of mistralrs.ChatCompletionRequest, or the reason why not. Knows no Engine."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from runner.engines import gbnf
from runner.errors import RequestError, UnsupportedField
from runner.types import GuidedDecoding, TokenRequest

CAPABILITIES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "guided.json_schema",
    "guided.json_object",
    "guided.regex",
    "guided.grammar",
    "guided.choice",
)
"""Not: a seed of a request (mistral.rs has one for the whole engine), min_tokens, typical_p, bad words, beams."""
_NEVER = -1e6
_TOP_LOGPROBS = 100
_REFUSED: dict[str, object] = {"seed": None, "typical_p": 1.0, "bad_words_ids": (), "beam_width": 1}


def check_honoured(request: TokenRequest) -> None:
    """Raises UnsupportedField for what mistral.rs would ignore."""
    sampling = request.sampling
    for name, neutral in _REFUSED.items():
        if getattr(sampling, name) != neutral:
            raise UnsupportedField(f"out=mistralrs does not honour {name}; leave it out", field=name)
    if request.min_tokens:
        raise UnsupportedField("out=mistralrs does not honour min_tokens; leave it out", field="min_tokens")
    if request.adapter is not None:
        raise UnsupportedField("out=mistralrs has no adapters here", field="adapter")
    if sampling.logprobs is None:
        return
    if sampling.logprobs > _TOP_LOGPROBS:
        raise RequestError(f"logprobs must be from 0 to {_TOP_LOGPROBS}, got {sampling.logprobs}", field="logprobs")
    if sampling.temperature not in (0.0, 1.0):
        raise UnsupportedField(
            f"mistral.rs divides its log-probabilities by the temperature: logprobs need temperature 0 or 1, got "
            f"{sampling.temperature:g}",
            field="logprobs",
        )


def request_fields(
    request: TokenRequest, stop_texts: list[str], hidden_ids: Collection[int], vocab_size: int
) -> dict[str, Any]:
    """All but the prompt. Neutral values too: mistral.rs takes what is not said from the model's generation config.

    `stop_texts`: special tokens that end the answer, as they are written. `hidden_ids`: those that do not; mistral.rs
    would make them without telling, so they are forbidden. Raises RequestError.
    """
    sampling = request.sampling
    bias = {token: max(value, _NEVER) for token, value in (sampling.logit_bias or {}).items()}
    bias.update(dict.fromkeys(hidden_ids, _NEVER))
    fields: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or vocab_size,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "ignore_eos": True,  # stop ids are ours to see; special ones are told by their text
        "stop_seqs": stop_texts or None,
        "logit_bias": bias or None,
        "logprobs": True,
        "top_logprobs": max(1, sampling.logprobs or 0),
    }
    if sampling.guided is not None:
        fields["grammar_type"], fields["grammar"] = grammar_of(sampling.guided)
    return {name: value for name, value in fields.items() if value is not None}


def grammar_of(guided: GuidedDecoding) -> tuple[str, str]:
    """mistral.rs' `grammar_type` and `grammar`. Raises RequestError for GBNF that cannot be read."""
    if guided.json_schema is not None:
        return "json_schema", json.dumps({} if guided.json_schema is True else guided.json_schema)
    if guided.json_object is not None:
        return "json_schema", json.dumps({"type": "object"})
    if guided.regex is not None:
        return "regex", guided.regex
    if guided.choice is not None:
        if not guided.choice:
            raise RequestError("guided.choice: the list is empty; give at least one text", field="guided")
        return "lark", "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(text) for text in guided.choice)
    try:
        return "lark", gbnf.to_lark(guided.grammar or "")
    except gbnf.GbnfError as problem:
        raise RequestError(f"guided.grammar: {problem}", field="guided") from None
