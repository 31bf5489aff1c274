"""Token requests and deltas as Dynamo's workers take and give them (PreprocessedRequest, LLMEngineOutput).

Between two llmrun the field `llmrun` holds what Dynamo's fields cannot say, so that nothing is lost or rounded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from runner.errors import EngineFailed, RequestError
from runner.types import FinishReason, SamplingParams, TokenDelta, TokenLogprob, TokenRequest

_FINISH: dict[str, FinishReason] = {
    "stop": "stop", "eos": "stop", "length": "length", "cancelled": "cancelled", "content_filter": "stop",
}  # fmt: skip
DYNAMO_CAPABILITIES = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "min_tokens", "guided.json_schema", "guided.regex", "guided.grammar", "guided.choice",
)  # fmt: skip
"""What can be asked of a worker that says nothing about itself."""


_MAX_ID = 2**31 - 1
_Positive = Annotated[int, msgspec.Meta(ge=1, le=_MAX_ID)]
_NotNegative = Annotated[int, msgspec.Meta(ge=0, le=_MAX_ID)]


class _Extra(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    sampling: SamplingParams = SamplingParams()
    adapter: str | None = None


def encode_request(request: TokenRequest, model: str, eos_token_ids: tuple[int, ...], mdcsum: str) -> dict[str, Any]:
    """A PreprocessedRequest."""
    sampling = request.sampling
    ignores_eos = bool(eos_token_ids) and not set(eos_token_ids) & set(request.stop_token_ids)
    return {
        "model": model,
        "token_ids": request.token_ids,
        "stop_conditions": {
            "max_tokens": request.max_tokens,
            "stop": None,
            "stop_token_ids": list(request.stop_token_ids) or None,
            "stop_token_ids_hidden": list(request.stop_token_ids) or None,
            "min_tokens": request.min_tokens or None,
            "ignore_eos": ignores_eos,
        },
        "sampling_options": _sampling(sampling),
        "output_options": {"logprobs": sampling.logprobs, "prompt_logprobs": None, "skip_special_tokens": False},
        "eos_token_ids": list(eos_token_ids),
        "mdc_sum": mdcsum or None,
        "annotations": [],
        "llmrun": msgspec.to_builtins(_Extra(sampling=sampling, adapter=request.adapter), str_keys=True),
    }


def _sampling(sampling: SamplingParams) -> dict[str, Any]:
    guided = sampling.guided
    fields: dict[str, Any] = {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
    }
    if guided is not None:
        named = {
            "json": guided.json_schema,
            "regex": guided.regex,
            "grammar": guided.grammar,
            "choice": list(guided.choice) if guided.choice else None,
        }
        fields["guided_decoding"] = {key: value for key, value in named.items() if value is not None}
    return fields


def decode_request(body: Any, request_id: str, room: int) -> TokenRequest:
    """The request of a PreprocessedRequest. `room`: the context, where it names no max_tokens. Raises RequestError."""
    try:
        token_ids = msgspec.convert(body["token_ids"], list[int])
        stop = body.get("stop_conditions") or {}
        eos = () if stop.get("ignore_eos") else msgspec.convert(body.get("eos_token_ids") or (), tuple[int, ...])
        stops = msgspec.convert(
            (*(stop.get("stop_token_ids") or ()), *(stop.get("stop_token_ids_hidden") or ()), *eos), tuple[int, ...]
        )
        if body.get("llmrun") is not None:
            extra = msgspec.convert(body["llmrun"], _Extra, strict=False)
        else:
            extra = _Extra(sampling=_decode_sampling(body))
        max_tokens = stop.get("max_tokens")
        check_ids(token_ids, stops)
        return TokenRequest(
            id=request_id,
            token_ids=token_ids,
            sampling=extra.sampling,
            max_tokens=max(1, room - len(token_ids)) if max_tokens is None else msgspec.convert(max_tokens, _Positive),
            min_tokens=msgspec.convert(stop.get("min_tokens") or 0, _NotNegative),
            stop_token_ids=tuple(dict.fromkeys(stops)),
            adapter=extra.adapter,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RequestError(f"the request cannot be read: {error!r:.500}") from None


def check_ids(*several: Sequence[int]) -> None:
    """Whether they are in the vocabulary is the engine's to say. Raises ValueError."""
    for ids in several:
        if ids and not (min(ids) >= 0 and max(ids) <= _MAX_ID):
            raise ValueError(f"token ids are numbers from 0 to {_MAX_ID}")


def _decode_sampling(body: dict[str, Any]) -> SamplingParams:
    given = body.get("sampling_options") or {}
    fields = {
        name: given[name]
        for name in SamplingParams.__struct_fields__
        if name not in ("guided", "logprobs") and given.get(name) is not None
    }
    if fields.get("top_k") == -1:
        fields["top_k"] = 0
    logprobs = (body.get("output_options") or {}).get("logprobs")
    guided = {k: v for k, v in (given.get("guided_decoding") or {}).items() if v is not None}
    if "json" in guided:
        guided["json_schema"] = guided.pop("json")
    known = {k: v for k, v in guided.items() if k in ("json_schema", "regex", "grammar", "choice")}
    return msgspec.convert({**fields, "logprobs": logprobs, "guided": known or None}, SamplingParams)


def encode_delta(delta: TokenDelta, prompt_tokens: int, num_made: int) -> dict[str, Any]:
    """An LLMEngineOutput."""
    item: dict[str, Any] = {"token_ids": delta.token_ids}
    if delta.finish is not None:
        item["finish_reason"] = delta.finish
        item["completion_usage"] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": num_made,
            "total_tokens": prompt_tokens + num_made,
        }
    if delta.stop_token_id is not None:
        item["stop_reason"] = delta.stop_token_id
    if delta.logprobs is not None:
        item["log_probs"] = [one.logprob for one in delta.logprobs]
        item["top_logprobs"] = [
            [{"rank": rank, "token_id": i, "token": None, "logprob": p} for rank, (i, p) in enumerate(one.top, 1)]
            for one in delta.logprobs
        ]
    if delta.cached_tokens is not None:
        item["llmrun_cached"] = delta.cached_tokens
    return item


def decode_delta(item: Any, stop_token_ids: tuple[int, ...]) -> TokenDelta:
    """The delta of an LLMEngineOutput; a stop token at its end is taken off. Raises EngineFailed."""
    try:
        token_ids = item.get("token_ids") or []
        if type(token_ids) is not list:
            raise TypeError("token_ids are no list of token ids")
        for i in token_ids:  # an all(...) costs as much as the rest of a delta
            if type(i) is not int or not 0 <= i <= _MAX_ID:
                raise TypeError("token_ids are no list of token ids")
        reason = item.get("finish_reason")
        finish, stop_token_id = None, None
        if reason is not None:
            finish = _FINISH.get(reason) if isinstance(reason, str) else None
            if finish is None:
                raise EngineFailed(f"the worker failed: {reason}")
            at = item.get("stop_reason")
            stop_token_id = at if type(at) is int and 0 <= at <= _MAX_ID else None
            if finish == "stop" and token_ids and token_ids[-1] in stop_token_ids:
                *token_ids, stop_token_id = token_ids
        return TokenDelta(
            token_ids,
            finish,
            _logprobs(item, token_ids) if item.get("log_probs") else None,
            stop_token_id,
            _count(item.get("llmrun_cached")),
        )
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise EngineFailed(f"the worker sent what is no delta: {error!r:.500}") from None


def _count(value: Any) -> int | None:
    return None if value is None else msgspec.convert(value, _NotNegative)


def _logprobs(item: dict[str, Any], token_ids: list[int]) -> list[TokenLogprob]:
    tops = item.get("top_logprobs") or [[] for _ in token_ids]
    found = [
        (token_id, logprob, [(one["token_id"], one["logprob"]) for one in top])
        for token_id, logprob, top in zip(token_ids, item["log_probs"], tops, strict=False)
    ]
    return msgspec.convert(found, list[TokenLogprob])


DEADLINE = "x-llmrun-deadline"


def deadline_header(seconds: float) -> str:
    """Until when a request is worth starting: a request that a restarted broker delivers late is not."""
    return f"{time.time() + seconds:.3f}"


def is_late(header: str | None) -> bool:
    """Whether the deadline is over; what cannot be read is not."""
    try:
        return header is not None and time.time() > float(header)
    except ValueError:
        return False
