"""GBNF (llama.cpp's grammar notation, grammars/README.md there) to the Lark dialect of llguidance.

A grammar without recursion becomes ONE regular expression; one with recursion becomes rules over single characters.
Never anything between: llguidance's lexer takes the longest match, so a terminal such as [a-z]+ before "end" would
swallow the "end", and answers that the grammar allows could not be given. (llguidance's own converter does that, and
fails on `(x*)*`.)

Does not know tokens, masks or models.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn, TypeAlias

_MAX_DEPTH = 100
_MAX_REGEX_LEN = 100_000
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t]|#[^\n]*)+")
_BLANK_LINES = re.compile(r"(?:\s|#[^\n]*)+")
_REPEAT = re.compile(r"\{\s*(\d+)\s*(,\s*(\d*)\s*)?\}")
_TOKEN = re.compile(r"(!?)<(\[(\d+)\]|[^<>\s]+)>")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}
_HEX_LEN = {"x": 2, "u": 4, "U": 8}


class GbnfError(ValueError):
    """The grammar is wrong; the message says where and why."""


class Chars(NamedTuple):
    """One character out of a set, as a regex class."""

    regex: str


class Token(NamedTuple):
    """One token of the vocabulary, in Lark's notation."""

    lark: str


class Ref(NamedTuple):
    """Another rule."""

    name: str


class Concat(NamedTuple):
    """One after the other."""

    parts: tuple[Node, ...]


class Either(NamedTuple):
    """One of them."""

    parts: tuple[Node, ...]


class Repeat(NamedTuple):
    """`part` at least `low` and at most `high` times; None is no limit."""

    part: Node
    low: int
    high: int | None


Node: TypeAlias = "Chars | Token | Ref | Concat | Either | Repeat"


def to_lark(text: str) -> str:
    """The grammar as Lark with the rule `start`. Raises GbnfError."""
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise GbnfError("the grammar has no rule named root")
    for name, node in rules.items():
        for reference in _references(node):
            if reference not in rules:
                raise GbnfError(f"rule {name} uses {reference}, which is not defined")
    regex = _Regex(rules).of("root")
    if regex is not None:
        return f"start: /{regex}/" if regex else 'start: ""'
    names = {name: f"r{index}" for index, name in enumerate(rules)}
    lines = [f"{names[name]}: {_lark(node, names)}" for name, node in rules.items()]
    return "\n".join([f"start: {names['root']}", *lines])


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip(_BLANK_LINES)
        while self._at < len(self._text):
            name = self._match(_NAME)
            if name is None:
                self._fail("a rule's name was expected")
            self._skip(_BLANK)
            if not self._eat("::="):
                self._fail(f"::= was expected after {name.group()}")
            self._skip(_BLANK_LINES)
            found[name.group()] = self._alternatives(in_group=False)
            if self._at < len(self._text) and not self._skip(_BLANK_LINES):
                self._fail("a new line was expected")
        return found

    def _alternatives(self, *, in_group: bool) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail(f"groups are nested deeper than {_MAX_DEPTH}")
        parts = [self._sequence(in_group=in_group)]
        while self._eat("|"):
            self._skip(_BLANK_LINES)
            parts.append(self._sequence(in_group=in_group))
        self._depth -= 1
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _sequence(self, *, in_group: bool) -> Node:
        parts: list[Node] = []
        while True:
            self._skip(_BLANK_LINES if in_group else _BLANK)
            item = self._item()
            if item is None:
                return parts[0] if len(parts) == 1 else Concat(tuple(parts))
            parts.append(self._repeated(item))

    def _item(self) -> Node | None:
        if self._eat('"'):
            return self._literal()
        if self._eat("["):
            return self._class()
        if self._eat("."):
            return Chars(r"[\x{0}-\x{10FFFF}]")
        if self._eat("("):
            group = self._alternatives(in_group=True)
            if not self._eat(")"):
                self._fail(") was expected")
            return group
        token = self._match(_TOKEN)
        if token is not None:
            return _token(token)
        name = self._match(_NAME)
        return None if name is None else Ref(name.group())

    def _repeated(self, node: Node) -> Node:
        while True:
            bounds = self._match(_REPEAT)
            if bounds is not None:
                low = int(bounds.group(1))
                high = low if bounds.group(2) is None else int(bounds.group(3)) if bounds.group(3) else None
                if high is not None and high < low:
                    self._fail(f"{bounds.group()} has its limits in the wrong order")
                node = Repeat(node, low, high)
            elif self._eat("*"):
                node = Repeat(node, 0, None)
            elif self._eat("+"):
                node = Repeat(node, 1, None)
            elif self._eat("?"):
                node = Repeat(node, 0, 1)
            else:
                return node

    def _literal(self) -> Node:
        parts: list[Node] = []
        while not self._eat('"'):
            parts.append(Chars(_char(self._character('"'))))
        return parts[0] if len(parts) == 1 else Concat(tuple(parts))

    def _class(self) -> Node:
        negated = self._eat("^")
        ranges = ""
        while not self._eat("]"):
            first = self._character("]")
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                last = self._character("]")
                if ord(last) < ord(first):
                    self._fail(f"the range {first}-{last} is empty")
                ranges += f"{_char(first)}-{_char(last)}"
            else:
                ranges += _char(first)
        if not ranges:
            self._fail("an empty character class matches nothing")
        return Chars(f"[{'^' * negated}{ranges}]")

    def _character(self, closing: str) -> str:
        if self._at >= len(self._text):
            self._fail(f"{closing} is missing")
        character = self._text[self._at]
        self._at += 1
        if character != "\\":
            return character
        kind = self._text[self._at : self._at + 1]
        self._at += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        if kind in _HEX_LEN:
            return self._code_point(_HEX_LEN[kind])
        self._fail(f"unknown escape \\{kind}")

    def _code_point(self, length: int) -> str:
        digits = self._text[self._at : self._at + length]
        if len(digits) < length or not re.fullmatch("[0-9a-fA-F]+", digits) or int(digits, 16) > 0x10FFFF:
            self._fail(f"{length} hexadecimal digits of a character were expected")
        self._at += length
        return chr(int(digits, 16))

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        return self._match(pattern) is not None

    def _eat(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _fail(self, why: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        near = self._text[self._at : self._at + 20].split("\n")[0]
        raise GbnfError(f"line {line}, column {column}: {why}" + (f", got {near!r}" if near else ""))


def _char(character: str) -> str:
    return rf"\x{{{ord(character):X}}}"


def _token(match: re.Match[str]) -> Token:
    negated, text, number = match.groups()
    if number is not None:
        return Token(f"<[{'^' * bool(negated)}{number}]>")
    if negated:
        raise GbnfError(f"{match.group()}: give the token by its number, as in !<[1000]>")
    return Token(f"<{text}>")


def _references(node: Node) -> set[str]:
    match node:
        case Ref(name):
            return {name}
        case Concat(parts) | Either(parts):
            return set().union(*map(_references, parts))
        case Repeat(part):
            return _references(part)
    return set()


class _Regex:
    """A rule as one regular expression, or None: it is recursive, too long when expanded, or names tokens."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules = rules
        self._done: dict[str, str | None] = {}

    def of(self, name: str) -> str | None:
        if name not in self._done:
            self._done[name] = None  # while it is being made: a recursion ends here
            self._done[name] = self._node(self._rules[name])
        return self._done[name]

    def _node(self, node: Node) -> str | None:
        match node:
            case Chars(regex):
                return regex
            case Token():
                return None
            case Ref(name):
                return self.of(name)
            case Repeat(part, low, high):
                inner = self._node(part)
                return None if inner is None else f"(?:{inner}){_bounds(low, high)}"
            case Concat(parts):
                return self._joined(parts, "")
            case Either(parts):
                return self._joined(parts, "|")

    def _joined(self, parts: tuple[Node, ...], separator: str) -> str | None:
        inner = [self._node(part) for part in parts]
        if None in inner:
            return None
        text = separator.join(part for part in inner if part is not None)
        return f"(?:{text})" if len(text) <= _MAX_REGEX_LEN else None


def _bounds(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _lark(node: Node, names: dict[str, str]) -> str:
    match node:
        case Chars(regex):
            return f"/{regex}/"
        case Token(lark):
            return lark
        case Ref(name):
            return names[name]
        case Repeat(part, low, high):
            return f"({_lark(part, names)}){_bounds(low, high)}"
        case Concat(parts):
            return " ".join(f"({_lark(part, names)})" for part in parts) if parts else '""'
        case Either(parts):
            return "(" + " | ".join(_lark(part, names) for part in parts) + ")"
