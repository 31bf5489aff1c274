"""Fit OpenAI messages to what one chat template reads.

Templates differ: some take content as a string only, some as a list of parts; some write tool-call arguments as an
object, some as the JSON string; some fail on `content: null`. Which a template does is found by rendering small probes
once, the first time a request has something that matters. Knows nothing of Jinja.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from model_cards.errors import TemplateError

Message = dict[str, Any]
Probe = Callable[[list[Message], list[dict[str, Any]] | None], str]
"""Renders messages and tools; raises TemplateError."""
_NEEDLE = "needle7d1"
_TEXT_PARTS = ("text", "input_text", "output_text")
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}},
    }
]


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What a template reads."""

    reads_parts: bool
    """Content may be a list of parts."""
    reads_argument_objects: bool
    """Tool-call arguments may be an object (False: the JSON string)."""
    reads_null_content: bool
    """An assistant's content may be null."""
    reads_developer: bool = True
    """Gives the role `developer` a meaning of its own (False: it is told as `system`)."""


def find_dialect(render: Probe, source: str) -> Dialect:
    """Probe a template. A template that fails at every probe is given what transformers gives."""
    return Dialect(
        reads_parts=_reads_parts(render),
        reads_argument_objects=_reads_argument_objects(render),
        reads_null_content=_reads_null_content(render),
        reads_developer="developer" in source,  # else it would only be written as an unknown role's name
    )


def _try(render: Probe, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str | None:
    try:
        return render(messages, tools)
    except TemplateError:
        return None


def _reads_parts(render: Probe) -> bool:
    text = _try(render, [{"role": "user", "content": [{"type": "text", "text": _NEEDLE}]}])
    return text is not None and _NEEDLE in text and f"'{_NEEDLE}'" not in text and f'"{_NEEDLE}"' not in text


def _call_messages(arguments: Any, content: Any) -> list[Message]:
    call = {"id": "call00001", "type": "function", "function": {"name": "probe", "arguments": arguments}}
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "name": "probe", "content": "1"},
    ]


def _reads_argument_objects(render: Probe) -> bool:
    as_object = _try(render, _call_messages({_NEEDLE: _NEEDLE}, ""), _TOOLS)
    if as_object is not None and _NEEDLE in as_object and f"{{'{_NEEDLE}'" not in as_object:
        return True
    text = json.dumps({_NEEDLE: _NEEDLE})
    as_string = _try(render, _call_messages(text, ""), _TOOLS)
    return as_string is None or text not in as_string


def _reads_null_content(render: Probe) -> bool:
    for arguments in ({"a": 1}, '{"a": 1}'):
        with_empty = _try(render, _call_messages(arguments, ""), _TOOLS)
        if with_empty is not None:
            with_null = _try(render, _call_messages(arguments, None), _TOOLS)
            return with_null is not None and with_null.count("None") == with_empty.count("None")
    return True


def parse_arguments(message: Message) -> Message:
    """The message with tool-call arguments as objects, where they are JSON objects; itself if nothing changes."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return message
    return {**message, "tool_calls": [_with_arguments(call, _parsed) for call in calls]}


def fit_messages(messages: list[Message], dialect: Callable[[], Dialect]) -> list[Message]:
    """`messages` as the template reads them; `dialect` is asked only when it matters. Raises TemplateError."""
    if not any(_needs_fit(message) for message in messages):
        return messages
    return [_fit(message, dialect()) if _needs_fit(message) else message for message in messages]


def _needs_fit(message: Message) -> bool:
    is_plain = isinstance(message.get("content"), str) and message.get("role") != "developer"
    return not is_plain or bool(message.get("tool_calls"))


def _fit(message: Message, dialect: Dialect) -> Message:
    fitted = dict(message)
    if message.get("role") == "developer" and not dialect.reads_developer:
        fitted["role"] = "system"
    content = message.get("content")
    if content is None:
        fitted["content"] = None if dialect.reads_null_content else ""
    elif isinstance(content, list) and not dialect.reads_parts:
        fitted["content"] = "\n".join(_texts(content))
    elif isinstance(content, list):
        fitted["content"] = [_plain_part(part) for part in content]
    if isinstance(message.get("tool_calls"), list):
        convert = _parsed if dialect.reads_argument_objects else _dumped
        fitted["tool_calls"] = [_with_arguments(call, convert) for call in message["tool_calls"]]
    return fitted


def _texts(parts: list[Any]) -> Iterator[str]:
    """Text of each part (joined by a newline, as vLLM and llama.cpp do); raises TemplateError for another kind."""
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
            yield part["text"]
        else:
            kind = part.get("type", "no type") if isinstance(part, dict) else type(part).__name__
            raise TemplateError(f"this model's chat template takes text only; got a content part of type {kind!r}")


def _plain_part(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, dict) and part.get("type") in _TEXT_PARTS[1:]:
        return {**part, "type": "text"}
    return part


def _with_arguments(call: Any, convert: Callable[[Any], Any]) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": convert(function["arguments"])}}


def _parsed(arguments: Any) -> Any:
    """An object for a JSON object's text; a model's broken JSON stays the text it is."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _dumped(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
