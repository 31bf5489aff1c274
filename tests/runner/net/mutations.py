"""Hostile input made from good input: bytes with bits, lengths and pieces changed; trees with nodes changed.

Seeded, so that what is found is found again. Knows no protocol.
"""

from __future__ import annotations

import random
from typing import Any

_LENGTHS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_BYTES = b'\x00\xff\x80\x7f{}[]",:\\0-9eE.\n\xc0\xc1\xc7\xd7\xdd\xdf'
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 31, 1 << 63, -(1 << 63), 1.5, -0.0, 1e308, "", "x", "0", "\x00", "../../etc/passwd",
    "é\U0001f600", "a" * 300, [], {}, [None], [[]], {"": {}}, [1, "2", 3.0], {"a": [1, {"b": None}]}, [0] * 300,
)  # fmt: skip


class Mutator:
    """One stream of mutations."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def bytes(self, data: bytes) -> bytes:
        """The same with one to four changes."""
        made = bytearray(data)
        for _ in range(self.rng.choice((1, 1, 1, 2, 3, 4))):
            made = self._one(made)
        return bytes(made)

    def _one(self, data: bytearray) -> bytearray:
        rng = self.rng
        kind = rng.randrange(7) if data else 6
        at = rng.randrange(len(data)) if data else 0
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice(_BYTES)
        elif kind == 2:
            del data[at : at + rng.choice((1, 2, 8, 40))]
        elif kind == 3:
            data[at:at] = data[at : at + rng.choice((1, 4, 24, 100))]
        elif kind == 4:
            size = rng.choice((1, 2, 4, 8))
            data[at : at + size] = (rng.choice(_LENGTHS) % (1 << 8 * size)).to_bytes(size, "big")
        elif kind == 5:
            del data[at:]
        else:
            data[at:at] = rng.randbytes(rng.choice((1, 3, 16, 64)))
        return data

    def tree(self, value: Any) -> Any:
        """A copy with one node changed, removed, added or nested deeply."""
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.85:
            key = rng.choice(list(value))
            kind = rng.random()
            rest = {k: v for k, v in value.items() if k != key}
            if kind < 0.08:
                return rest
            if kind < 0.12:
                return {**value, rng.choice(("", "type", "x" * 100)): rng.choice(_ODD)}
            return {**rest, key: self.tree(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            return [*value[:at], self.tree(value[at]), *value[at + 1 :]]
        return rng.choice(_ODD)


def deep_json(depth: int = 100_000) -> bytes:
    """Lists in lists, which a decoder that recurses cannot read."""
    return b"[" * depth


def deep_msgpack(depth: int = 100_000) -> bytes:
    """The same in msgpack."""
    return b"\x91" * depth
