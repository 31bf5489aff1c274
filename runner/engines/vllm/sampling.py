"""A TokenRequest as vLLM's SamplingParams: a map of the fields that are not default (vllm/sampling_params.py).

Owns what vLLM's own front half (InputProcessor) would set: EngineCore fills in nothing. Knows no wire and no sockets.
"""

from __future__ import annotations

import json
from typing import Any

from runner.errors import RequestError
from runner.types import GuidedDecoding, SamplingParams, TokenRequest

CAPABILITIES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "logprobs",
    "bad_words_ids",
    "min_tokens",
    "guided.json_schema",
    "guided.json_object",
    "guided.regex",
    "guided.grammar",
    "guided.choice",
)
_SAME = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "logprobs",
)
_NEUTRAL = SamplingParams()


def sampling_map(request: TokenRequest, *, is_guarded: bool = True) -> dict[str, Any]:
    """For `sampling_params` of EngineCoreRequest. Raises RequestError for what vLLM cannot be asked.

    Without our guard (headless) nobody chooses the backend of structured output: it is xgrammar.
    """
    sampling = request.sampling
    fields: dict[str, Any] = {"max_tokens": request.max_tokens, "detokenize": False, "output_kind": 1}  # 1: DELTA
    for name in _SAME:
        value = getattr(sampling, name)
        if value != getattr(_NEUTRAL, name):
            fields[name] = value
    if request.min_tokens:
        fields["min_tokens"] = request.min_tokens
    if request.stop_token_ids:
        # End-of-sequence ids are among them, so that vLLM names the id that ended the stream; _all is for min_tokens.
        fields["stop_token_ids"] = fields["_all_stop_token_ids"] = list(request.stop_token_ids)
    if sampling.bad_words_ids:
        fields["_bad_words_token_ids"] = [list(ids) for ids in sampling.bad_words_ids]
    if sampling.guided is not None:
        structured = _structured(sampling.guided)
        fields["structured_outputs"] = structured if is_guarded else _for_xgrammar(structured)
    return fields


def _structured(guided: GuidedDecoding) -> dict[str, Any]:
    """StructuredOutputsParams; the worker's guard chooses the backend."""
    if guided.json_schema is False:
        raise RequestError("the JSON schema `false` allows nothing", field="guided.json_schema")
    if guided.json_schema is not None:
        return {"json": {} if guided.json_schema is True else guided.json_schema}
    if guided.json_object:
        return {"json_object": True}
    if guided.choice is not None:
        return {"choice": list(guided.choice)}
    return {"regex": guided.regex} if guided.regex is not None else {"grammar": guided.grammar}


def _for_xgrammar(structured: dict[str, Any]) -> dict[str, Any]:
    """With the backend named; a choice is a grammar there."""
    if "choice" in structured:
        if not structured["choice"]:
            raise RequestError("guided_choice: got no choices; name at least one", field="guided.choice")
        words = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in structured["choice"])
        structured = {"grammar": f"root ::= {words}"}
    return {**structured, "_backend": "xgrammar", "_backend_was_auto": True}
