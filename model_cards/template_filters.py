"""Jinja's filters and tests, paying for what they read and make (template_sandbox.Meter).

Owns the bounds of each filter. Knows nothing of templates or of how the meter counts.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, MutableMapping
from typing import Any

from model_cards.template_meter import Meter, TemplateLimit, pay_percent_format

# fmt: off
_FREE_FILTERS = frozenset(
    (
        "attr", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "map",
        "random", "reject", "rejectattr", "select", "selectattr",
    )
)
"""They look at their input item by item or not at all."""
_QUADRATIC_FILTERS = frozenset(
    (
        "filesizeformat", "forceescape", "pprint", "striptags", "sum", "title", "truncate", "urlize", "wordcount",
        "wordwrap", "xmlattr",
    )
)
_SORTING_FILTERS = frozenset({"dictsort", "groupby", "max", "min", "sort", "unique"})
_COUNTING_FILTERS = frozenset({"batch", "center", "filesizeformat", "indent", "round", "slice", "truncate", "wordwrap"})
"""A number among their arguments says how much they make."""
_DRAINING_FILTERS = _SORTING_FILTERS | {"join", "sum", "slice", "batch"}
"""They read lazy sequences to the end."""
_MAX_QUADRATIC = 64 * 1024
_MAX_SORTED = 2 * 1024 * 1024
_MAX_COUNT = 10_000
_FREE_TESTS = frozenset(
    (
        "boolean", "callable", "defined", "divisibleby", "escaped", "even", "false", "filter", "float", "integer",
        "iterable", "mapping", "none", "number", "odd", "sameas", "sequence", "string", "test", "true", "undefined",
    )
)
# fmt: on
_MAX_INDENT = 64


def guarded_filters(filters: MutableMapping[str, Any], meter: Meter) -> dict[str, Callable[..., Any]]:
    """Every filter of `filters` behind the meter, `tojson` and `join` replaced by bounded ones."""
    guarded = {name: _guarded_filter(name, function, meter) for name, function in filters.items()}
    guarded["tojson"] = _make_tojson(meter)
    return guarded


def guarded_tests(tests: MutableMapping[str, Any], meter: Meter) -> dict[str, Callable[..., Any]]:
    """Tests that read all of a value pay for it."""
    return {name: test if name in _FREE_TESTS else _guarded_test(test, meter) for name, test in tests.items()}


def _guarded_test(test: Callable[..., Any], meter: Meter) -> Callable[..., Any]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            meter.weigh(value)
        return test(*args, **kwargs)

    return run


def _guarded_filter(name: str, function: Callable[..., Any], meter: Meter) -> Callable[..., Any]:
    # Jinja hands context, eval context or environment first to filters that are marked for it.
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0
    is_free = name in _FREE_FILTERS
    ceiling = _MAX_QUADRATIC if name in _QUADRATIC_FILTERS else _MAX_SORTED if name in _SORTING_FILTERS else 0

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter.pay(16)
        if name in _DRAINING_FILTERS:
            args = _finite(args, skip)
        if not is_free:
            weight = sum(meter.weigh(value) for value in (*args[skip:], *kwargs.values()))
            if ceiling and weight > ceiling:
                raise TemplateLimit(f"gives {weight:,} characters to the filter `{name}`; it takes {ceiling:,}")
        if name in _GROWTHS:
            _GROWTHS[name](meter, args[skip:], kwargs)
        if name in _COUNTING_FILTERS:
            _check_counts(name, (*args[skip + 1 :], *kwargs.values()))
        result = function(*args, **kwargs)
        meter.touch(result)
        return result

    return run


def _finite(args: tuple[Any, ...], skip: int) -> tuple[Any, ...]:
    """Arguments with a lazy sequence made a list, so that it can be weighed and still be read."""
    value = args[skip]
    if not hasattr(value, "__next__"):
        return args
    return (*args[:skip], list(value), *args[skip + 1 :])


def _check_counts(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_COUNT:
            raise TemplateLimit(f"asks the filter `{name}` for {value:,}; the limit is {_MAX_COUNT:,}")


def _pay_join(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    separator = args[1] if len(args) > 1 else kwargs.get("d", "")
    if isinstance(separator, str) and hasattr(args[0], "__len__"):
        meter.pay(len(separator) * len(args[0]))


def _pay_replace(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    old, new = (*args[1:3], kwargs.get("old"), kwargs.get("new"))[:2]
    if isinstance(args[0], str) and isinstance(old, str) and isinstance(new, str):
        meter.pay(args[0].count(old) * len(new))


def _pay_indent(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    width = args[1] if len(args) > 1 else kwargs.get("width", 4)
    per_line = len(width) if isinstance(width, str) else width if isinstance(width, int) else 0
    meter.pay(str(args[0]).count("\n") * max(per_line, 0))


def _pay_format(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    pay_percent_format(meter, str(args[0]), kwargs or args[1:])


_GROWTHS: dict[str, Callable[[Meter, tuple[Any, ...], dict[str, Any]], None]] = {
    "join": _pay_join,
    "replace": _pay_replace,
    "indent": _pay_indent,
    "format": _pay_format,
}


def _make_tojson(meter: Meter) -> Callable[..., str]:
    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        """As transformers': plain JSON, no HTML escapes, dictionary order kept."""
        shape = (len(indent) if isinstance(indent, str) else indent or 0) + sum(map(len, separators or ()))
        if shape > _MAX_INDENT:
            raise TemplateLimit(
                f"asks `tojson` for an indent or separators of {shape:,} characters; {_MAX_INDENT} is the limit"
            )
        meter.pay(meter.weigh(x) * (1 if indent is None else 2))
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    return tojson
