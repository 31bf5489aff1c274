"""Arrays in a GGUF file's metadata, decoded only when somebody looks.

Own the decoding of one array each; know nothing of keys. They read the mapping of the file, so they die with it.
"""

from __future__ import annotations

import array
import mmap
import struct
import sys
from collections.abc import Sequence
from operator import methodcaller
from typing import Any, overload

_LENGTH = struct.Struct("<Q")


class StringArray(Sequence[str]):
    """Strings of a file, decoded at each use: keep the list that `raw()` returns rather than indexing often."""

    def __init__(self, data: mmap.mmap, start: int, end: int, count: int) -> None:
        """`count` strings, each with its 64-bit length before it, fill [start, end) of `data` exactly."""
        self._data, self._start, self._end, self._count = data, start, end, count

    def raw(self) -> list[bytes]:
        """All strings as the bytes in the file."""
        data = self._data[self._start : self._end]
        strings, offset, length_at = [], 0, _LENGTH.unpack_from
        for _ in range(self._count):
            begin = offset + 8
            offset = begin + length_at(data, offset)[0]
            strings.append(data[begin:offset])
        return strings

    def decode(self) -> list[str]:
        """All strings; bytes that are not UTF-8 become lone surrogates, as `surrogateescape` does."""
        data = self._data[self._start : self._end]
        strings, offset, length_at = [], 0, _LENGTH.unpack_from
        for _ in range(self._count):
            begin = offset + 8
            offset = begin + length_at(data, offset)[0]
            strings.append(data[begin:offset].decode("utf-8", "surrogateescape"))
        return strings

    def decode_pairs(self) -> list[tuple[str, str]]:
        """Both halves of each string around its first space that is not its first character; ("", "") without one."""
        raw = self.raw()
        if set(map(methodcaller("count", b" "), raw)) == {1}:
            # One split of everything is twice as fast as one of each.
            halves = iter(b" ".join(raw).decode("utf-8", "replace").split(" "))
            return list(zip(halves, halves, strict=True))
        return [_halves(text.decode("utf-8", "replace")) for text in raw]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.decode()[index]

    def __repr__(self) -> str:
        return f"StringArray({self._count} strings)"


class NumberArray(Sequence[Any]):
    """Numbers or booleans of a file; `values()` decodes them all into a compact array."""

    def __init__(self, data: mmap.mmap, start: int, count: int, code: str) -> None:
        """`count` little-endian values of struct format `code` begin at `start` of `data`."""
        self._data, self._start, self._count, self._code = data, start, count, code

    @property
    def code(self) -> str:
        """struct format of one value: "f", "i", "B", "?" ..."""
        return self._code

    def raw(self) -> bytes:
        """The bytes in the file."""
        return self._data[self._start : self._start + self._count * struct.calcsize("<" + self._code)]

    def values(self) -> Sequence[Any]:
        """All values: an array.array, or a list of bool."""
        if self._code == "?":
            return [byte != 0 for byte in self.raw()]
        # array's "I" and "i" are 4 bytes on every platform that runs this; "Q" and "q" are 8.
        values = array.array(self._code, self.raw())
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.values()[index]

    def __repr__(self) -> str:
        return f"NumberArray({self._count} of {self._code!r})"


def _halves(text: str) -> tuple[str, str]:
    cut = text.find(" ", 1)
    return (text[:cut], text[cut + 1 :]) if cut > 0 else ("", "")
