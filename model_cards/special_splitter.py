"""SpecialSplitter: cut a text at the special tokens that are written out in it.

Owns the order in which llama.cpp looks for them (`tokenizer_st_partition`, src/llama-vocab.cpp): the longest token
first, over the whole text, then the next. Does not know which tokens are special, nor how the rest is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

Fragment = str | int
"""Text between special tokens (never empty), or the id of one."""

_SPACE = " \t\n\v\f\r"
"""What C's isspace() calls whitespace."""


class SpecialSplitter:
    """Splits texts at a fixed set of tokens."""

    def __init__(
        self,
        tokens: Mapping[str, int],
        left_stripping: Collection[int] = (),
        right_stripping: Collection[int] = (),
    ) -> None:
        """`tokens` is text -> id; the ids in the two sets swallow whitespace before or after them."""
        self._tokens = dict(tokens)
        self._left, self._right = frozenset(left_stripping), frozenset(right_stripping)
        self._by_length = sorted(self._tokens, key=lambda text: -len(text.encode("utf-8", "surrogateescape")))
        self._lengths = _lengths_by_start(self._tokens)
        self._starts = _start_pattern(self._tokens)
        strips = bool(self._left or self._right)
        self._is_simple = not _can_overlap(self._tokens) and not (
            strips and any(_has_edge_space(t) for t in self._tokens)
        )

    def split(self, text: str) -> list[Fragment]:
        """Fragments of `text` in order."""
        if not self._tokens or not text:
            return [text] if text else []
        if not self._is_simple:
            return self._split_exactly(text)
        fragments: list[Fragment] = []
        begin = 0
        for start, end, token_id in self._find(text):
            self._append(fragments, text[begin:start], token_id)
            begin = self._skip_space(text, end) if token_id in self._right else end
            fragments.append(token_id)
        if begin < len(text):
            fragments.append(text[begin:])
        return fragments

    def _append(self, fragments: list[Fragment], text: str, next_id: int) -> None:
        if next_id in self._left:
            text = text.rstrip(_SPACE)
        if text:
            fragments.append(text)

    @staticmethod
    def _skip_space(text: str, begin: int) -> int:
        while begin < len(text) and text[begin] in _SPACE:
            begin += 1
        return begin

    def _find(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Leftmost matches, the longest at each place; the same as longest first where no two tokens can overlap."""
        position = 0
        tokens, lengths = self._tokens, self._lengths
        while match := self._starts.search(text, position):
            position = match.start()
            for length in lengths[text[position]]:
                token_id = tokens.get(text[position : position + length])
                if token_id is not None:
                    yield position, position + length, token_id
                    position += length
                    break
            else:
                position += 1

    def _split_exactly(self, text: str) -> list[Fragment]:
        fragments: list[Fragment] = [text]
        for token in self._by_length:
            if token in text:
                fragments = [part for fragment in fragments for part in self._cut(fragment, token)]
        return fragments

    def _cut(self, fragment: Fragment, token: str) -> list[Fragment]:
        if isinstance(fragment, int):
            return [fragment]
        token_id = self._tokens[token]
        *heads, tail = fragment.split(token) if token_id not in self._right else self._cut_right(fragment, token)
        parts: list[Fragment] = []
        for head in heads:
            self._append(parts, head, token_id)
            parts.append(token_id)
        return [*parts, tail] if tail else parts

    def _cut_right(self, text: str, token: str) -> list[str]:
        parts, begin = [], 0
        while (found := text.find(token, begin)) >= 0:
            parts.append(text[begin:found])
            begin = self._skip_space(text, found + len(token))
        return [*parts, text[begin:]]


def _lengths_by_start(tokens: Collection[str]) -> dict[str, list[int]]:
    lengths: dict[str, set[int]] = {}
    for text in tokens:
        lengths.setdefault(text[0], set()).add(len(text))
    return {start: sorted(found, reverse=True) for start, found in lengths.items()}


def _start_pattern(tokens: Collection[str]) -> re.Pattern[str]:
    """Matches where a token may begin, by its first two characters: cheap to search for, seldom wrong."""
    seconds: dict[str, set[str]] = {}
    for text in tokens:
        seconds.setdefault(text[0], set()).add(text[1:2])
    parts = []
    for first, nexts in seconds.items():
        ahead = "" if "" in nexts else f"(?=[{''.join(map(re.escape, sorted(nexts)))}])"
        parts.append(re.escape(first) + ahead)
    return re.compile("|".join(parts))


def _can_overlap(tokens: Collection[str]) -> bool:
    """Whether the end of one token can be the beginning of another (or of itself)."""
    beginnings = {text[:length] for text in tokens for length in range(1, len(text))}
    return any(text[begin:] in beginnings for text in tokens for begin in range(1, len(text)))


def _has_edge_space(text: str) -> bool:
    return text[0] in _SPACE or text[-1] in _SPACE
