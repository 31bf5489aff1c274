"""Kinds of values in an OpenAI request body: each kind checks a value and describes itself as JSON schema.

Knows nothing of which fields exist (openai_requests.py) or of HTTP. Every failed check raises RequestError that names
the field, what was got and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from runner.errors import RequestError, UnsupportedField

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_DEPTH = 64
"""Levels of nesting in free-form JSON (schemas, tools): what walks it later does so recursively."""


class Kind(NamedTuple):
    """`read(field, value)` returns the checked (and converted) value; `schema` is its JSON schema."""

    read: Callable[[str, Any], Any]
    schema: dict[str, Any]


def show(value: Any) -> str:
    """A value as a short piece of an error message; never raises, whatever the client sent."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INT64:
        return "a number of more than 64 bits"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} items"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def bad(field: str, value: Any, allowed: str) -> NoReturn:
    """Raise the RequestError of a wrong value."""
    raise RequestError(f"{field}: got {show(value)}, allowed is {allowed}", field=field)


def number(low: float, high: float, *, above_low: bool = False) -> Kind:
    """A finite number in [low, high], or ]low, high]."""
    bounds = f"a number {'above' if above_low else 'from'} {low:g} {'up ' if above_low else ''}to {high:g}"

    def read(field: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            bad(field, value, bounds)
        if not low <= value <= high or (above_low and value == low):  # false for NaN, exact for huge integers
            bad(field, value, bounds)
        return float(value)

    least = {"exclusiveMinimum": low} if above_low else {"minimum": low}
    return Kind(read, {"type": "number", **least, "maximum": high})


def integer(low: int, high: int = MAX_INT32) -> Kind:
    """A whole number in [low, high]; 4.0 counts as 4."""

    def read(field: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            bad(field, value, f"a whole number from {low} to {high}")
        return value

    return Kind(read, {"type": "integer", "minimum": low, "maximum": high})


def _read_bool(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        bad(field, value, "true or false")
    return value


def _read_object(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        bad(field, value, "an object")
    check_depth(field, value)
    return value


BOOL = Kind(_read_bool, {"type": "boolean"})
OBJECT = Kind(_read_object, {"type": "object", "additionalProperties": True})


def string(max_len: int = MAX_INT32, *, empty: bool = True) -> Kind:
    """A string of at most `max_len` characters."""
    allowed = "a string" if max_len == MAX_INT32 else f"a string of at most {max_len} characters"

    def read(field: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > max_len or not (value or empty):
            bad(field, value, allowed if empty else allowed + ", not empty")
        return value

    return Kind(read, {"type": "string", **({} if empty else {"minLength": 1})})


def one_of(*words: str) -> Kind:
    """One of these words."""

    def read(field: str, value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            bad(field, value, "one of " + ", ".join(map(repr, words)))
        return value

    return Kind(read, {"type": "string", "enum": list(words)})


def list_of(item: Kind, max_len: int, *, min_len: int = 0) -> Kind:
    """A list of at most `max_len` items; becomes a tuple."""

    def read(field: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not min_len <= len(value) <= max_len:
            bad(field, value, f"a list of {min_len} to {max_len} items")
        return tuple(item.read(f"{field}[{index}]", entry) for index, entry in enumerate(value))

    return Kind(read, {"type": "array", "items": item.schema, "minItems": min_len, "maxItems": max_len})


def one_or_list(item: Kind, max_len: int) -> Kind:
    """One item or a list of them; becomes a tuple."""
    many = list_of(item, max_len)

    def read(field: str, value: Any) -> tuple[Any, ...]:
        return many.read(field, value) if isinstance(value, list) else (item.read(field, value),)

    return Kind(read, {"oneOf": [item.schema, many.schema]})


def exactly(*allowed: Any, why: str) -> Kind:
    """Only values that ask for nothing special; `why` says what is not built and what to do instead."""

    def read(field: str, value: Any) -> Any:
        if not any(value == item and type(value) is type(item) for item in allowed):
            from_us = f"{field}: got {show(value)}; {why}"
            raise UnsupportedField(from_us, field=field)
        return value

    return Kind(read, {"enum": list(allowed)})


def check_depth(field: str, value: Any) -> None:
    """Refuse free-form JSON that is nested too deep to be walked safely."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    bad(field, value, f"JSON nested at most {MAX_DEPTH} deep")


def _children(item: Any) -> list[Any]:
    values = item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ()
    return [value for value in values if isinstance(value, dict | list)]
