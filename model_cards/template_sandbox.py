"""A Jinja environment for templates that strangers wrote: no files, no attributes of ours, bounded work and memory.

Owns where the meter (template_meter.py) is read. Jinja's own sandbox keeps a template away from Python's internals;
this file adds the bounds that it lacks. What can grow a value or repeat work pays for it before it happens:

    loops, calls, filters, tests   pay for a step and for the size of what they read
    + * % ** ~ slices, str methods pay for the size of what they make
    {{ output }}, comparisons      pay for all that hangs below the value (shared lists make small values huge)

It knows nothing of chats or messages (template.py). Semantics are those of transformers' `apply_chat_template`: this is
Jinja2's ImmutableSandboxedEnvironment, and the meter changes no value.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from string import Formatter
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, missing
from jinja2.visitor import NodeTransformer

from model_cards.template_filters import guarded_filters, guarded_tests
from model_cards.template_meter import BINOP_PRICES, ITEM, WIDTH, Meter, TemplateLimit, pay_method

MAX_SOURCE_CHARS = 128 * 1024
"""Longest template; the longest known one has 30 thousand characters."""


_DICT_ATTRIBUTES = frozenset(dir(dict))
_LOOP_ATTRIBUTES = frozenset(
    ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem")
)


class QuietNamespace(Namespace):
    """Jinja's namespace with a bounded text: two that hold each other would print for ever."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: marks what a training run learns from; the text is the body's."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body inside a scope of its own, as transformers' call block has."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Metering(NodeTransformer):
    """Writes the meter into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Each loop pays for its sequence and each round for a step."""
        self.generic_visit(node)
        node.iter = _metered(node.iter, "_touch")
        node.body = [nodes.ExprStmt(_metered(nodes.Const(None), "_step"), lineno=node.lineno), *node.body]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """`a ~ b` knows its length before it is made."""
        self.generic_visit(node)
        return _metered(nodes.Tuple(node.nodes, "load", lineno=node.lineno), "_concat")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """Tuples can be hashed, and hashing walks all of them."""
        self.generic_visit(node)
        return _metered(node, "_weigh") if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """A slice is a copy."""
        self.generic_visit(node)
        return _metered(node, "_touch") if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Comparing walks both sides, so it is free against a literal only; `in` searches its right side."""
        self.generic_visit(node)
        left_is_literal = isinstance(node.expr, nodes.Const)
        for operand in node.ops:
            right_is_literal = isinstance(operand.expr, (nodes.Const, nodes.List))
            searches = operand.op in ("in", "notin")
            if not right_is_literal and (searches or not left_is_literal):
                operand.expr = _metered(operand.expr, "_weigh")
        return node


def _metered(node: Any, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _MeteredFormatter(SandboxedFormatter):
    """str.format with bounded widths and results."""

    def __init__(self, env: SandboxEnvironment) -> None:
        Formatter.__init__(self)
        self._env: Any = env

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Format one field; raises TemplateLimit for a width of five digits."""
        if WIDTH.search(format_spec):
            raise TemplateLimit(f"formats with a width of {format_spec[:20]!r}")
        self._env.meter.weigh(value)
        return super().format_field(value, format_spec)


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one compiled template; `meter.start()` before each render."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        self.meter = Meter()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            cache_size=0,
            extensions=[_Generation, LoopControlExtension],
            finalize=self._finalize_output,
        )
        self.filters: dict[str, Any] = {**guarded_filters(self.filters, self.meter), **self._internal_filters()}
        self.tests: dict[str, Any] = guarded_tests(self.tests, self.meter)
        self.globals["namespace"] = QuietNamespace
        del self.globals["lipsum"]

    def _internal_filters(self) -> dict[str, Callable[..., Any]]:
        meter = self.meter

        # pass_context: Jinja never evaluates such a filter at compile time.
        @pass_context
        def touch(_: Context, value: Any) -> Any:
            meter.touch(value)
            return value

        @pass_context
        def weigh(_: Context, value: Any) -> Any:
            meter.weigh(value)
            return value

        @pass_context
        def step(_: Context, value: Any) -> Any:
            meter.pay(ITEM)
            return value

        @pass_context
        def concat(context: Context, items: tuple[Any, ...]) -> str:
            meter.pay(sum(len(item) if isinstance(item, str) else meter.weigh(item) for item in items))
            return markup_join(items) if context.eval_ctx.autoescape else str_join(items)

        return {"_touch": touch, "_weigh": weigh, "_step": step, "_concat": concat}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Metering().visit(tree)
        return tree

    def _finalize_output(self, value: Any) -> Any:
        if type(value) is str:
            self.meter.pay(len(value))
        else:
            self.meter.weigh(value)
        return value

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox does; messages are dicts, and most names are their keys, which needs no exception."""
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            if attribute in obj:
                return obj[attribute]
            return self.undefined(obj=obj, name=attribute)
        if type(obj) is LoopContext and attribute in _LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        if type(obj) is QuietNamespace and attribute[:1] != "_":
            value = getattr(obj, attribute, missing)
            return value if value is not missing else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Pay for what an operator makes, before it makes it."""
        BINOP_PRICES[operator](self.meter, left, right)
        return self.binop_table[operator](left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Bounded `str.format`; without format_map, which no template uses."""
        if not isinstance(value, (types.MethodType, types.BuiltinMethodType)) or not isinstance(value.__self__, str):
            return None
        if value.__name__ not in ("format", "format_map"):
            return None
        text: str = str(value.__self__)
        formatter = _MeteredFormatter(self)
        if value.__name__ == "format_map":
            return lambda mapping: formatter.vformat(text, (), mapping)
        return lambda *args, **kwargs: formatter.vformat(text, args, kwargs)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call is a step; methods of strings pay for their result first."""
        meter = __self.meter
        meter.pay(ITEM)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes, int)):
            pay_method(meter, owner, __obj.__name__, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        meter.touch(result)
        return result
