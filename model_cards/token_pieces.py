"""What bytes each token of a vocabulary adds to a text.

Owns the three ways vocabularies write bytes down: GPT-2's byte alphabet, U+2581 with `<0xXX>`, RWKV's escapes. Does not
know which tokens are special.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

Style = Literal["alphabet", "spaced", "escaped", "plain"]

SPACE = "\u2581"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_ESCAPED = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def _make_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in -> byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHAR = _make_alphabet()
CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}
_TO_LATIN = {ord(char): byte for char, byte in BYTE_OF_CHAR.items()}


def alphabet_bytes(text: str) -> bytes:
    """Bytes of a token in GPT-2's alphabet; a character outside it stands for itself."""
    try:
        # Characters of Latin-1 that are not in the alphabet (a space, U+00AD) would pass as bytes: they must not.
        if all(char in BYTE_OF_CHAR for char in text):
            return text.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        pass
    return b"".join(bytes([BYTE_OF_CHAR[c]]) if c in BYTE_OF_CHAR else raw_bytes(c) for c in text)


def raw_bytes(text: str) -> bytes:
    """Text as it stands, lone surrogates being the bytes that were not UTF-8 in the file."""
    return text.encode("utf-8", "surrogateescape")


def spaced_bytes(text: str) -> bytes:
    """Bytes of a SentencePiece token."""
    return raw_bytes(text.replace(SPACE, " "))


def byte_token(text: str) -> bytes:
    """The byte of `<0xXX>`; other texts as they stand."""
    match = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else raw_bytes(text)


def unescape(text: str) -> bytes:
    r"""Bytes of an RWKV token: `\t`, `\n`, `\r`, `\xHH`, and a backslash before anything else."""

    def replace(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        return bytes([int(escape[1:], 16)]) if len(escape) == 3 else _ESCAPED.get(escape, escape)

    return _ESCAPE.sub(replace, raw_bytes(text))


DECODERS: dict[Style, Callable[[str], bytes]] = {
    "alphabet": alphabet_bytes,
    "spaced": spaced_bytes,
    "escaped": unescape,
    "plain": raw_bytes,
}
