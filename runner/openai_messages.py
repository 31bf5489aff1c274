"""Messages, tools and response formats of an OpenAI request: checked and brought into the form that templates take.

Owns the roles, content parts and guided-decoding spellings of OpenAI, vLLM and llama.cpp. Knows no other fields.
"""

from __future__ import annotations

from typing import Any

import msgspec

from runner.errors import RequestError, UnsupportedField
from runner.openai_fields import Kind, bad, check_depth, show
from runner.types import GuidedDecoding

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 10_000
MAX_TOOLS = 1_024
MAX_CHOICES = 4_096

MESSAGES_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string", "enum": list(ROLES)},
            "content": {
                "oneOf": [
                    {"type": "string"},
                    {"type": "null"},
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["type", "text"],
                            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        },
                    },
                ]
            },
            "name": {"type": "string"},
            "tool_calls": {"type": "array", "items": {"type": "object"}},
            "tool_call_id": {"type": "string"},
            "reasoning_content": {"type": "string"},
        },
    },
}
TOOLS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "maxItems": MAX_TOOLS,
    "items": {
        "type": "object",
        "required": ["type", "function"],
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "description": {"type": "string"},
                    "parameters": {"type": "object"},
                },
            },
        },
    },
}


def _read_messages(field: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        bad(field, value, "a list of messages")
    if not value:
        raise RequestError("messages is empty; at least one message is needed", field=field)
    if len(value) > MAX_MESSAGES:
        bad(field, value, f"at most {MAX_MESSAGES} messages")
    return [_message(f"{field}[{index}]", message) for index, message in enumerate(value)]


def _message(where: str, message: Any) -> dict[str, Any]:
    """One message; nulls are left out, text parts are joined, other keys go to the template as they are."""
    if not isinstance(message, dict):
        bad(where, message, "an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        bad(f"{where}.role", role, "one of " + ", ".join(ROLES))
    check_depth(where, message)
    out = {key: value for key, value in message.items() if value is not None}
    if role == "assistant" and "tool_calls" in out:
        out["tool_calls"] = _tool_calls(f"{where}.tool_calls", out["tool_calls"])
    if "content" not in out and not (role == "assistant" and out.keys() & {"tool_calls", "function_call"}):
        bad(f"{where}.content", message.get("content"), "a string or a list of text parts")
    out["content"] = _content(f"{where}.content", out.get("content", ""))
    for key in ("name", "tool_call_id", "reasoning_content"):
        if key in out and not isinstance(out[key], str):
            bad(f"{where}.{key}", out[key], "a string")
    return out


def _content(where: str, content: Any) -> str:
    """Text of a message. Text parts are joined by a newline, as vLLM and llama.cpp do."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        bad(where, content, "a string or a list of text parts")
    return "\n".join(_part(f"{where}[{index}]", part) for index, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "input_text", "refusal"):
        if isinstance(kind, str):
            raise UnsupportedField(f"{where}: parts of type {show(kind)} are not supported; only text is", field=where)
        bad(where, part, 'an object {"type": "text", "text": ...}')
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        bad(f"{where}.text", text, "a string")
    return text


def _tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        bad(where, calls, "a list of tool calls")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            bad(f"{where}[{index}]", call, 'an object {"id", "type": "function", "function": {"name", "arguments"}}')
        if not isinstance(function.get("arguments", ""), str | dict):
            bad(f"{where}[{index}].function.arguments", function["arguments"], "a string of JSON")
    return calls


def _read_tools(field: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        bad(field, value, f"a list of at most {MAX_TOOLS} tools")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            bad(
                f"{field}[{index}]",
                tool,
                'an object {"type": "function", "function": {"name": ..., "parameters": ...}}',
            )
    check_depth(field, value)
    return value


def _read_tool_choice(field: str, value: Any) -> str:
    if value in ("none", "auto"):
        return str(value)
    if value == "required" or (isinstance(value, dict) and value.get("type") == "function"):
        named = "required" if isinstance(value, str) else "a named function"
        raise UnsupportedField(f"tool_choice: {named} is not supported; use 'auto' or 'none'", field=field)
    bad(field, value, "'none' or 'auto'")


def _read_response_format(field: str, value: Any) -> GuidedDecoding | None:
    if not isinstance(value, dict):
        bad(field, value, 'an object such as {"type": "json_object"}')
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object" and "schema" not in value:
        return GuidedDecoding(json_object=True)
    if kind == "json_object":
        return read_json_schema(f"{field}.schema", value["schema"])
    if kind == "json_schema":
        spec = value.get("json_schema")
        if not isinstance(spec, dict) or "schema" not in spec:
            bad(f"{field}.json_schema", spec, 'an object {"name": ..., "schema": {...}}')
        return read_json_schema(f"{field}.json_schema.schema", spec["schema"])
    bad(f"{field}.type", kind, "one of 'text', 'json_object', 'json_schema'")


def read_json_schema(field: str, value: Any) -> GuidedDecoding:
    """A JSON schema as an object, a boolean, or a string of JSON (vLLM's guided_json)."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            bad(field, value, "a JSON schema")
    if not isinstance(value, dict | bool):
        bad(field, value, "a JSON schema (an object)")
    check_depth(field, value)
    return GuidedDecoding(json_schema=value)


def _read_choice(field: str, value: Any) -> GuidedDecoding:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CHOICES or not all(isinstance(v, str) for v in value):
        bad(field, value, f"a list of 1 to {MAX_CHOICES} strings")
    return GuidedDecoding(choice=tuple(value))


def _read_regex(field: str, value: Any) -> GuidedDecoding:
    if not isinstance(value, str) or not value:
        bad(field, value, "a regular expression (a string)")
    return GuidedDecoding(regex=value)


def _read_grammar(field: str, value: Any) -> GuidedDecoding:
    if not isinstance(value, str) or not value.strip():
        bad(field, value, "a grammar in GBNF (a string)")
    return GuidedDecoding(grammar=value)


def _read_structured(field: str, value: Any) -> GuidedDecoding | None:
    """vLLM's newer spelling: {"json" | "regex" | "choice" | "grammar" | "json_object": ...}."""
    if not isinstance(value, dict):
        bad(field, value, "an object with one of json, regex, choice, grammar, json_object")
    given = {key: item for key, item in value.items() if item is not None and item is not False}
    for key in given:
        if key not in _STRUCTURED:
            raise UnsupportedField(f"{field}.{key} is not supported; known are {', '.join(_STRUCTURED)}", field=field)
    if len(given) > 1:
        raise RequestError(f"{field}: {' and '.join(given)} exclude each other; give one", field=field)
    return next((_STRUCTURED[key](f"{field}.{key}", item) for key, item in given.items()), None)


def _read_json_object(field: str, value: Any) -> GuidedDecoding:
    if value is not True:
        bad(field, value, "true")
    return GuidedDecoding(json_object=True)


_STRUCTURED = {
    "json": read_json_schema,
    "regex": _read_regex,
    "choice": _read_choice,
    "grammar": _read_grammar,
    "json_object": _read_json_object,
}

MESSAGES = Kind(_read_messages, MESSAGES_SCHEMA)
TOOLS = Kind(_read_tools, TOOLS_SCHEMA)
TOOL_CHOICE = Kind(_read_tool_choice, {"type": "string", "enum": ["none", "auto"]})
_FORMAT_PROPERTIES = {"type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"}}
_SCHEMA_OR_TEXT = {"oneOf": [{"type": "object"}, {"type": "string"}, {"type": "boolean"}]}

GUIDED: dict[str, Kind] = {
    "response_format": Kind(
        _read_response_format, {"type": "object", "required": ["type"], "properties": _FORMAT_PROPERTIES}
    ),
    "structured_outputs": Kind(
        _read_structured, {"type": "object", "properties": {key: {} for key in _STRUCTURED}, "maxProperties": 1}
    ),
    "guided_json": Kind(read_json_schema, _SCHEMA_OR_TEXT),
    "json_schema": Kind(read_json_schema, _SCHEMA_OR_TEXT),
    "guided_regex": Kind(_read_regex, {"type": "string"}),
    "guided_choice": Kind(_read_choice, {"type": "array", "items": {"type": "string"}, "minItems": 1}),
    "guided_grammar": Kind(_read_grammar, {"type": "string"}),
    "grammar": Kind(_read_grammar, {"type": "string"}),
}
"""Every spelling of guided decoding; at most one may be given."""
