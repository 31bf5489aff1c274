"""What a template may spend: time, size of values, total work; and the price of each operation that can grow a value.

Owns the meter and the prices. Knows nothing of Jinja's environment (template_sandbox.py), which reads the meter.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.runtime import Undefined

MAX_CHARS = 16 * 1024 * 1024
"""Largest single value and largest output."""
MAX_SPENT = 160 * 1024 * 1024
"""Sum of all that one render pays, in characters (a step, or an item of a list, counts as ITEM)."""
MAX_CPU_S = 1.0
"""Processor seconds of one render."""
MAX_INT_BITS = 65_536
ITEM = 16
_CHECK_EVERY = 16_384
WIDTH = re.compile(r"\d{5,}|\*")


class TemplateLimit(TemplateRuntimeError):
    """A template used more time or memory than any honest one does."""


class Meter:
    """What one render may still spend. One at a time: the template's lock sees to that."""

    __slots__ = ("_deadline", "_next_check", "spent")

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a render."""
        self.spent = 0
        self._next_check = _CHECK_EVERY
        self._deadline = time.thread_time() + MAX_CPU_S

    def pay(self, cost: int) -> None:
        """Spend `cost` characters; raises TemplateLimit when one value or the whole is too much."""
        self.spent += cost
        if self.spent >= self._next_check:
            self._check(cost)

    def _check(self, cost: int) -> None:
        if cost > MAX_CHARS:
            raise TemplateLimit(f"makes a value of {cost:,} characters; the limit is {MAX_CHARS:,}")
        if self.spent > MAX_SPENT:
            raise TemplateLimit(f"works on more than {MAX_SPENT:,} characters in one render")
        if time.thread_time() > self._deadline:
            raise TemplateLimit(f"runs for more than {MAX_CPU_S:g} s")
        self._next_check = self.spent + _CHECK_EVERY

    def touch(self, value: Any) -> None:
        """Pay for `value` itself, not for what hangs below it."""
        kind = type(value)
        if kind is str or isinstance(value, (str, bytes)):
            self.pay(len(value))
        elif kind is list or kind is dict or kind is tuple or isinstance(value, (list, tuple, dict, set, range)):
            self.pay(ITEM * len(value))

    def weigh(self, value: Any) -> int:
        """Pay for `value` and all below it, counting shared parts each time they would be written; returns the cost."""
        if isinstance(value, (str, bytes)):
            self.pay(len(value))
            return len(value)
        before, todo = self.spent, [value]
        while todo:
            item = todo.pop()
            if isinstance(item, (str, bytes)):
                self.pay(len(item) + 2)
                continue
            self.pay(ITEM)
            if isinstance(item, Mapping):
                self._expand(todo, before, [*item.keys(), *item.values()])
            elif isinstance(item, (list, tuple, set, frozenset)):
                self._expand(todo, before, item)
        return self.spent - before

    def _expand(self, todo: list[Any], before: int, items: Any) -> None:
        if self.spent - before + ITEM * (len(items) + len(todo)) > MAX_CHARS:
            raise TemplateLimit(f"makes a nested value of more than {MAX_CHARS:,} characters")
        todo.extend(items)


def _pay_add(meter: Meter, left: Any, right: Any) -> None:
    if isinstance(left, (str, bytes)) and isinstance(right, (str, bytes)):
        meter.pay(len(left) + len(right))
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        meter.pay(ITEM * (len(left) + len(right)))


def _pay_multiply(meter: Meter, left: Any, right: Any) -> None:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, (str, bytes, list, tuple)) and isinstance(count, int):
            meter.pay((1 if isinstance(sequence, (str, bytes)) else ITEM) * len(sequence) * max(count, 0))
            return
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_INT_BITS:
        raise TemplateLimit("multiplies numbers of more than 65,536 bits")


def _pay_power(meter: Meter, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(right, 1) > MAX_INT_BITS:
        raise TemplateLimit("makes a number of more than 65,536 bits")


def _pay_modulo(meter: Meter, left: Any, right: Any) -> None:
    if isinstance(left, (str, bytes)):
        pay_percent_format(meter, left, right)


def pay_percent_format(meter: Meter, text: str | bytes, values: Any) -> None:
    """Pay for `text % values`: every `%` may write all values."""
    pattern = text if isinstance(text, str) else text.decode("latin-1")
    if any(WIDTH.search(spec) for spec in re.findall(r"%[^a-zA-Z%]*", pattern)):
        raise TemplateLimit("formats with a width of five digits or `*`")
    meter.pay(len(text) + (pattern.count("%") + 1) * meter.weigh(values))


BINOP_PRICES: dict[str, Callable[[Meter, Any, Any], None]] = {
    "+": _pay_add,
    "*": _pay_multiply,
    "**": _pay_power,
    "%": _pay_modulo,
}


def pay_method(meter: Meter, owner: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Pay for a method of str, bytes or int whose result may be larger than its inputs."""
    if isinstance(owner, int):
        if name == "to_bytes":
            raise SecurityError("int.to_bytes is not for templates")
        return
    meter.pay(len(owner))
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        width = next((a for a in (*args, *kwargs.values()) if isinstance(a, int)), 8)
        meter.pay(max(width, 0) * (1 + owner.count("\t" if isinstance(owner, str) else b"\t")))
    elif name == "replace" and len(args) >= 2 and isinstance(args[1], (str, bytes)):
        meter.pay(_safe_count(owner, args[0]) * len(args[1]))
    elif name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], type(owner)) and args[0] else None
        meter.pay(ITEM * (_safe_count(owner, separator) if separator else len(owner) // 2))
    elif name == "join" and args:
        _pay_join(meter, owner, args[0])
    elif name == "translate":
        raise SecurityError("str.translate is not for templates")


def _pay_join(meter: Meter, separator: str | bytes, items: Any) -> None:
    if isinstance(items, (list, tuple, dict)):
        meter.pay(sum(len(item) + len(separator) for item in items if isinstance(item, (str, bytes))))
    elif isinstance(items, (str, bytes)):
        meter.pay(len(items) * (1 + len(separator)))
    elif not isinstance(items, Undefined):
        raise TemplateLimit("joins a lazy sequence by a method; use the filter `join`")


def _safe_count(text: Any, part: Any) -> int:
    return text.count(part) if isinstance(part, type(text)) else 0
