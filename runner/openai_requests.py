"""OpenAI request bodies -> ChatRequest: what the fields mean together, and the refusal of all that is unknown.

A field is honoured, listed in openai_tables.IGNORED, or refused by name. Knows nothing of HTTP, models or tokenizers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from runner.errors import RequestError, UnsupportedField, UsageError
from runner.openai_fields import BOOL, MAX_INT32, Kind, show
from runner.openai_messages import GUIDED
from runner.openai_tables import (
    ALIASES,
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    COMPLETION_MAX_TOKENS,
    EMBEDDING_FIELDS,
    HINTS,
    IGNORED,
    MAX_PROMPTS,
    NOT_BUILT,
    SAMPLING_FIELDS,
)
from runner.options import RunOptions
from runner.types import ChatRequest, GuidedDecoding, SamplingOptions


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One parsed body: a ChatRequest per prompt (chat: one), and how the answer is wanted."""

    requests: tuple[ChatRequest, ...]
    stream: bool = False
    include_usage: bool = False
    warnings: tuple[str, ...] = ()
    """With --lenient: what was not honoured, in words."""

    @property
    def n(self) -> int:
        """Choices for each prompt."""
        return self.requests[0].sampling.n or 1


class EmbeddingCall(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed body of /v1/embeddings."""

    model: str
    inputs: tuple[str | list[int], ...]
    base64: bool = False
    dimensions: int | None = None
    warnings: tuple[str, ...] = ()


class RequestDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a body gets that does not say otherwise: fields by name, and a system message for chats without one."""

    fields: dict[str, Any] = {}
    system: str | None = None


NO_DEFAULTS = RequestDefaults()

_REFUSAL_ADVICE = "; remove it, or start with --lenient to get a warning instead"
_TRUNCATED = "Input data was truncated"
"""What msgspec also says of half a surrogate pair that stands at the end of a string."""
_HALF_A_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")


def decode_body(raw: bytes | bytearray) -> dict[str, Any]:
    """Strict JSON object of a body. Raises RequestError; NaN, Infinity and lone surrogates are not JSON."""
    try:
        body = msgspec.json.decode(raw.removeprefix(b"\xef\xbb\xbf"))
    except RecursionError:
        raise RequestError("the body is not usable: its JSON is nested too deep") from None
    except (msgspec.MsgspecError, ValueError) as error:
        said = str(error) or type(error).__name__
        if said == _TRUNCATED and _HALF_A_PAIR.search(raw):
            said += ", or a \\u escape is half of a surrogate pair without the other half"
        raise RequestError(f"the body is not valid JSON ({len(raw)} bytes): {said}") from None
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, got {show(body)}")
    return body


def read_fields(
    body: Mapping[str, Any], table: Mapping[str, Kind], *, lenient: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Checked values by canonical name, and warnings. Nulls count as not given; unknown names are refused."""
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for name, value in body.items():
        field = ALIASES.get(name, name)
        kind = table.get(field)
        try:
            if kind is None:
                _read_without_effect(name, value, table)
            elif value is not None:
                read = kind.read(name, value)
                if values.setdefault(field, read) != read:
                    raise RequestError(f"{name} and its other name {field} differ; give one of them", field=name)
        except UnsupportedField as error:
            if not lenient:
                raise
            warnings.append(f"not honoured: {str(error).removesuffix(_REFUSAL_ADVICE)}")
    return values, tuple(warnings)


def _read_without_effect(name: str, value: Any, table: Mapping[str, Kind]) -> None:
    """Fields that change nothing, or ask for what is not built. Raises UnsupportedField for unknown ones."""
    kind = IGNORED.get(name) or NOT_BUILT.get(name)
    if kind is None:
        raise UnsupportedField(_unknown(name, table), field=name[:100])
    if value is not None:
        kind.read(name, value)


def _unknown(name: str, table: Mapping[str, Kind]) -> str:
    close = HINTS.get(name) or next(iter(difflib.get_close_matches(name[:100], [*table, *ALIASES], 1, 0.7)), None)
    hint = f"; did you mean {close}?" if close else _REFUSAL_ADVICE
    return f"unknown field {show(name)}{hint}"


def parse_chat(
    body: Mapping[str, Any], *, request_id: str, lenient: bool = False, defaults: RequestDefaults = NO_DEFAULTS
) -> Call:
    """Body of /v1/chat/completions. Raises RequestError."""
    values, warnings = read_fields(_with_defaults(body, defaults, CHAT_FIELDS), CHAT_FIELDS, lenient=lenient)
    logprobs = _chat_logprobs(values)
    if "messages" not in values:
        raise RequestError("messages is missing; at least one message is needed", field="messages")
    request = _chat_request(values, request_id, logprobs, defaults.system)
    return _call((request,), values, body, warnings)


def parse_completion(
    body: Mapping[str, Any], *, request_id: str, lenient: bool = False, defaults: RequestDefaults = NO_DEFAULTS
) -> Call:
    """Body of /v1/completions; one ChatRequest for each prompt. Raises RequestError."""
    values, warnings = read_fields(
        _with_defaults(body, defaults, COMPLETION_FIELDS), COMPLETION_FIELDS, lenient=lenient
    )
    prompts = values.get("prompt")
    if prompts is None:
        raise RequestError("prompt is missing; give a string or token ids", field="prompt")
    if len(prompts) * values.get("n", 1) > MAX_PROMPTS:
        message = f"{len(prompts)} prompts with n = {values['n']} choices each; at most {MAX_PROMPTS} choices in all"
        raise RequestError(message, field="n")
    values.setdefault("max_tokens", COMPLETION_MAX_TOKENS)
    common = _common(values, values.get("logprobs"))
    ids = [request_id] if len(prompts) == 1 else [f"{request_id}-{index}" for index in range(len(prompts))]
    echo = values.get("echo", False)
    requests = tuple(
        ChatRequest(id=one_id, prompt=prompt, echo=echo, **common) for one_id, prompt in zip(ids, prompts, strict=True)
    )
    return _call(requests, values, body, warnings)


def parse_embedding(body: Mapping[str, Any], *, lenient: bool = False) -> EmbeddingCall:
    """Body of /v1/embeddings. Raises RequestError."""
    values, warnings = read_fields(body, EMBEDDING_FIELDS, lenient=lenient)
    if "input" not in values:
        raise RequestError("input is missing; give a string, token ids, or a list of these", field="input")
    return EmbeddingCall(
        model=values.get("model", ""),
        inputs=values["input"],
        base64=values.get("encoding_format") == "base64",
        dimensions=values.get("dimensions"),
        warnings=warnings,
    )


def request_defaults(options: RunOptions) -> RequestDefaults:
    """From --request-template and the sampling flags; a flag beats the file. Raises UsageError for a wrong file."""
    fields = _template_file(options.request_template) if options.request_template else {}
    for name in ("temperature", "top_k", "top_p", "seed", "max_tokens"):
        value = getattr(options, name)
        if value is not None:
            fields[name] = value
    return RequestDefaults(fields=fields, system=options.system)


def _template_file(path: str) -> dict[str, Any]:
    """dynamo-run's {"model", "temperature", "max_completion_tokens"}, and any other field of a chat."""
    try:
        body = decode_body(Path(path).read_bytes())
        read_fields(body, CHAT_FIELDS)
    except OSError as error:
        raise UsageError(f"--request-template {path}: cannot be read ({error.strerror})") from error
    except RequestError as error:
        raise UsageError(f"--request-template {path}: {error}") from error
    return {ALIASES.get(name, name): value for name, value in body.items() if value is not None}


def _with_defaults(body: Mapping[str, Any], defaults: RequestDefaults, table: Mapping[str, Kind]) -> Mapping[str, Any]:
    if not defaults.fields:
        return body
    given = {ALIASES.get(name, name) for name, value in body.items() if value is not None and value != ""}
    added = {name: value for name, value in defaults.fields.items() if name in table and name not in given}
    return {**body, **added}


def _chat_logprobs(values: Mapping[str, Any]) -> int | None:
    top = values.get("top_logprobs")
    if not values.get("logprobs"):
        if top:
            raise RequestError("top_logprobs needs logprobs: true", field="top_logprobs")
        return None
    return int(top or 0)


def _chat_request(values: Mapping[str, Any], request_id: str, logprobs: int | None, system: str | None) -> ChatRequest:
    messages = values["messages"]
    if system and not any(message["role"] in ("system", "developer") for message in messages):
        messages = [{"role": "system", "content": system}, *messages]
    template_args = dict(values.get("chat_template_kwargs", {}))
    if "reasoning_effort" in values:
        template_args.setdefault("reasoning_effort", values["reasoning_effort"])
    continues = values.get("continue_final_message", False)
    adds = values.get("add_generation_prompt", not continues)
    if continues and adds:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other", field="continue_final_message"
        )
    documents = values.get("documents")
    return ChatRequest(
        id=request_id,
        messages=messages,
        tools=None if values.get("tool_choice") == "none" else values.get("tools") or None,
        documents=list(documents) if documents else None,
        template_args=template_args,
        add_generation_prompt=adds,
        continue_final_message=continues,
        chat_template=values.get("chat_template"),
        **_common(values, logprobs),
    )


_PASSED = ("max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos")
_PASSED_TOO = ("include_stop_str_in_output", "skip_special_tokens", "model")


def _common(values: Mapping[str, Any], logprobs: int | None) -> dict[str, Any]:
    """Fields that chats and completions share, as keyword arguments of ChatRequest."""
    out = {name: values[name] for name in (*_PASSED, *_PASSED_TOO) if name in values}
    if out.get("min_tokens", 0) > out.get("max_tokens", MAX_INT32):
        raise RequestError(
            f"min_tokens is {out['min_tokens']}, more than max_tokens, {out['max_tokens']}", field="min_tokens"
        )
    out["sampling"] = _sampling(values, logprobs)
    return out


def _sampling(values: Mapping[str, Any], logprobs: int | None) -> SamplingOptions:
    """-1 means "off" for top_k (vLLM) and "random" for seed (llama.cpp)."""
    chosen = {name: values[name] for name in SAMPLING_FIELDS if name in values}
    if chosen.get("top_k") == -1:
        chosen["top_k"] = 0
    if chosen.get("seed") == -1:
        del chosen["seed"]
    if chosen.get("logit_bias") == {}:
        del chosen["logit_bias"]
    return SamplingOptions(logprobs=logprobs, guided=_guided(values), **chosen)


def _guided(values: Mapping[str, Any]) -> GuidedDecoding | None:
    given = [name for name in GUIDED if values.get(name) is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} exclude each other; give one", field=given[1])
    guided: GuidedDecoding | None = values[given[0]] if given else None
    return guided


def _call(
    requests: tuple[ChatRequest, ...], values: Mapping[str, Any], body: Mapping[str, Any], warnings: tuple[str, ...]
) -> Call:
    stream = values.get("stream", False)
    best_of = body.get("best_of")
    call = Call(requests=requests, stream=stream, include_usage=_include_usage(values, stream), warnings=warnings)
    if best_of is not None and best_of != call.n:
        raise UnsupportedField(
            f"best_of is {show(best_of)}; only the value of n, {call.n}, is supported", field="best_of"
        )
    return call


_STREAM_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "include_usage": BOOL.read,
    "include_obfuscation": BOOL.read,
}


def _include_usage(values: Mapping[str, Any], stream: bool) -> bool:
    """`include_obfuscation` is accepted: no padding is ever added here."""
    options = values.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise RequestError("stream_options needs stream: true", field="stream_options")
    for name, value in options.items():
        read = _STREAM_OPTIONS.get(name)
        if read is None:
            raise UnsupportedField(f"unknown field stream_options.{name[:100]}", field="stream_options")
        if value is not None:
            read(f"stream_options.{name}", value)
    return bool(options.get("include_usage"))
