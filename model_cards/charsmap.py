"""Charsmap: SentencePiece's precompiled normalization (NFKC and the like as a table of replacements).

Owns the format: a little-endian size, a double-array trie of that many bytes, then replacements that end in NUL (Kanda,
2018; sentencepiece's normalizer.cc). Longest prefix first; characters without an entry stay.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from model_cards.errors import TokenizerError

_MAX_BYTES = 8 << 20
"""NFKC with case folding has 0.25 million."""


class Charsmap:
    """Replaces prefixes of a text by the table's strings."""

    def __init__(self, blob: bytes, kept: Collection[str] = ()) -> None:
        """`kept`: texts that pass unchanged. Raises TokenizerError where `blob` contradicts itself."""
        self._trie: tuple[int, ...] = ()
        self._replacements = b""
        if len(blob) > _MAX_BYTES:
            raise TokenizerError(f"the precompiled charsmap has {len(blob)} bytes; at most {_MAX_BYTES} are read")
        if blob:
            size = struct.unpack_from("<I", blob)[0] if len(blob) > 4 else len(blob)
            if size + 4 >= len(blob) or size % 4:
                raise TokenizerError(f"the precompiled charsmap of {len(blob)} bytes claims a trie of {size} bytes")
            self._trie = struct.unpack_from(f"<{size // 4}I", blob, 4)
            self._replacements = blob[4 + size :]
        self._kept = {text.encode("utf-8", "surrogateescape") for text in kept}
        self._kept_lengths = sorted({len(text) for text in self._kept}, reverse=True)

    def normalize(self, text: str) -> str:
        """`text` after the replacements."""
        if not self._trie:
            return text
        data = text.encode()
        parts, position = [], 0
        while position < len(data):
            part, position = self._step(data, position)
            parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")

    def _step(self, data: bytes, position: int) -> tuple[bytes, int]:
        for length in self._kept_lengths:
            if data[position : position + length] in self._kept:
                return data[position : position + length], position + length
        length, at = self._longest(data, position)
        if length:
            end = self._replacements.find(b"\0", at)
            if at >= len(self._replacements) or end < 0:
                raise TokenizerError("the precompiled charsmap points outside its replacements")
            return self._replacements[at:end], position + length
        length = 1 if data[position] < 0xC0 else 2 if data[position] < 0xE0 else 3 if data[position] < 0xF0 else 4
        return data[position : position + length], position + length

    def _longest(self, data: bytes, begin: int) -> tuple[int, int]:
        """(bytes matched, offset of the replacement); (0, 0) for no match."""
        found = (0, 0)
        node = _base(self._node(0))
        for position in range(begin, len(data)):
            byte = data[position]
            if not byte:
                break
            node ^= byte
            unit = self._node(node)
            if unit & 0x800000FF != byte:
                break
            node ^= _base(unit)
            if unit >> 8 & 1:
                found = (position - begin + 1, self._node(node) & 0x7FFFFFFF)
        return found

    def _node(self, index: int) -> int:
        if index >= len(self._trie):
            raise TokenizerError("the precompiled charsmap points outside its trie")
        return self._trie[index]


def _base(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)
