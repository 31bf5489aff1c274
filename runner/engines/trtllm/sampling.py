"""A TokenRequest as TensorRT-LLM's SamplingParams of any release, or the reason why not. Knows no Engine.

Fields: tensorrt_llm/sampling_params.py of NVIDIA/TensorRT-LLM. What its two backends honour: docs/source/features/
sampling.md of 1.0.0 and 1.3.0.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

from runner.errors import UnsupportedField
from runner.types import GuidedDecoding, TokenRequest

_OLD_NAMES = {"max_tokens": "max_new_tokens", "seed": "random_seed", "min_tokens": "min_length"}
"""Name of today -> of the first releases with an LLM API."""
_ALWAYS = ("temperature", "top_k", "top_p")
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_ENGINE_ONLY = ("seed", "bad_words_ids", "min_tokens")
_GUIDED = ("guided.json_schema", "guided.json_object", "guided.regex", "guided.grammar", "guided.choice")
_FIELD_OF = {"logit_bias": "embedding_bias", "bad_words_ids": "bad_token_ids"}
_PYTORCH_SAMPLES_ALL = (1, 3)
"""From this release on the PyTorch backend documents penalties, min_p and biases for every request."""
_NO_END_ID = -1


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What the loaded model honours in the installed release."""

    fields: frozenset[str]
    """Parameters of SamplingParams."""
    is_engine: bool
    number: tuple[int, int]
    """Major and minor version."""
    has_tokenizer: bool
    gives_logprobs: bool

    def capabilities(self) -> tuple[str, ...]:
        """As in EngineInfo: honoured by the backend, and known to this release."""
        names = [*_ALWAYS]
        if self.is_engine or self.number >= _PYTORCH_SAMPLES_ALL:
            names += ["min_p", *_PENALTIES, "logit_bias"]
        if self.is_engine:
            names += _ENGINE_ONLY
        if self.gives_logprobs:
            names.append("logprobs")
        names = [name for name in names if self.knows(_FIELD_OF.get(name, name))]
        return (*names, *(_GUIDED if self.has_tokenizer and "guided_decoding" in self.fields else ()))

    def knows(self, name: str) -> bool:
        """Whether SamplingParams has this field, by its name of today or an old one."""
        return name in self.fields or _OLD_NAMES.get(name) in self.fields

    def translate(self, values: dict[str, Any]) -> dict[str, Any]:
        """Names of this release. Raises UnsupportedField for one that it does not know."""
        translated = {}
        for name, value in values.items():
            if not self.knows(name):
                raise UnsupportedField(f"this TensorRT-LLM knows no {name!r}", field=name)
            translated[name if name in self.fields else _OLD_NAMES[name]] = value
        return translated


def check_honoured(request: TokenRequest, capabilities: Collection[str]) -> None:
    """Raises UnsupportedField for what would be ignored, whoever asks."""
    sampling = request.sampling
    neutral = type(sampling)()
    for name in sampling.__struct_fields__:
        if name != "guided" and name not in capabilities and getattr(sampling, name) != getattr(neutral, name):
            raise UnsupportedField(f"out=trtllm does not honour {name} with this model; leave it out", field=name)
    if sampling.guided is not None:
        kind = next(name for name in sampling.guided.__struct_fields__ if getattr(sampling.guided, name) is not None)
        if f"guided.{kind}" not in capabilities:
            raise UnsupportedField(f"out=trtllm does not honour guided.{kind} with this model", field="guided")
    if request.min_tokens and "min_tokens" not in capabilities:
        raise UnsupportedField("out=trtllm does not honour min_tokens with this model", field="min_tokens")
    if request.min_tokens and len(request.stop_token_ids) > 1:
        raise UnsupportedField("TensorRT-LLM masks one end token only: min_tokens needs a single stop id", field="stop")
    if any(len(words) > 1 for words in sampling.bad_words_ids):
        raise UnsupportedField("TensorRT-LLM forbids single tokens only: a bad word has several", field="bad_words")


def sampling_fields(request: TokenRequest, seed: int, extra_stops: Collection[int] = ()) -> dict[str, Any]:
    """Names of today; the logit bias and the grammar, which need the library's types, are the caller's.

    Greedy is top_k 1: TensorRT-LLM divides by the temperature. What is not given means greedy too, so it is given.
    """
    sampling = request.sampling
    stops = sorted({*request.stop_token_ids, *extra_stops})
    fields: dict[str, Any] = {"max_tokens": request.max_tokens, "detokenize": False}
    if request.min_tokens:
        fields.update(end_id=stops[0] if stops else _NO_END_ID, min_tokens=request.min_tokens)
    else:
        fields.update(end_id=_NO_END_ID, **({"stop_token_ids": stops} if stops else {}))
    fields["pad_id"] = stops[0] if stops else 0
    if sampling.temperature == 0:
        fields["top_k"] = 1
    else:
        fields.update(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, seed=seed)
    neutral = type(sampling)()
    for name in ("min_p", *_PENALTIES):
        if getattr(sampling, name) != getattr(neutral, name):
            fields[name] = getattr(sampling, name)
    if sampling.bad_words_ids:
        fields["bad_token_ids"] = [words[0] for words in sampling.bad_words_ids]
    if sampling.logprobs is not None:
        fields["logprobs"] = max(1, sampling.logprobs)
    return fields


def guide_fields(guided: GuidedDecoding) -> dict[str, Any]:
    """For GuidedDecodingParams; a list of choices is a regular expression."""
    if guided.json_schema is not None:
        return {"json": {} if guided.json_schema is True else guided.json_schema}
    if guided.json_object is not None:
        return {"json_object": True}
    if guided.regex is not None:
        return {"regex": guided.regex}
    if guided.choice is not None:
        return {"regex": "|".join(f"({re.escape(text)})" for text in guided.choice)}
    return {"grammar": guided.grammar}
