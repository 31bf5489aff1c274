"""GgufFile: header and metadata of a GGUF file, memory-mapped; arrays are decoded on demand.

Owns the file format: bounds and limits. Does not know what the keys mean (gguf_card.py, gguf_vocab.py) and
never reads a tensor's data. Every defect of a file is a ModelFileError, found in bounded time and memory.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, TypeVar

from model_cards.errors import ModelFileError, ModelNotFound
from model_cards.gguf_arrays import NumberArray, StringArray
from model_cards.gguf_shards import find_shards as find_shards
from model_cards.gguf_types import ARRAY, FILE_TYPES, SCALAR_FORMATS, SCALAR_SIZES, STRING, TENSOR_TYPES, TensorType

MAX_KEYS = 65_536
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 16 << 20
MAX_ARRAY_BYTES = 64 << 20
MAX_STRINGS = 8_000_000
"""Strings in all arrays of one file; the largest vocabularies have 0.3 million tokens and 0.6 million merges."""
MAX_TENSORS = 1_000_000
MAX_TENSOR_NAME_BYTES = 63
MAX_DIMS = 4

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")
_SCALARS = {kind: struct.Struct("<" + fmt) for kind, fmt in SCALAR_FORMATS.items()}

T = TypeVar("T", str, int, float, bool)


class TensorInfo(NamedTuple):
    """One tensor's header. `shape` is ggml's order (fastest first); `offset` counts from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    num_bytes: int

    @property
    def num_values(self) -> int:
        """Product of the shape."""
        total = 1
        for size in self.shape:
            total *= size
        return total


class GgufFile:
    """Header and metadata of one model in GGUF form; several shards count as one file.

    Use `GgufFile.open(path)` as a context manager. Arrays taken from `metadata` read the mapping on demand, so they are
    usable only until `close()`.
    """

    def __init__(self, path: Path, shards: tuple[Path, ...]) -> None:
        """Parse `path`; call `open` instead, which finds the shards."""
        self.path = path
        self.shards = shards
        self._tensors: tuple[TensorInfo, ...] | None = None
        self.data_at = 0
        """Byte of this file where tensor data begins; known once `tensors` was read."""
        self._map = _map_file(path)
        try:
            self._scan()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GgufFile:
        """Open `path`, or all shards of the split model that `path` (any shard) belongs to.

        Raises ModelNotFound where nothing is there, ModelFileError for a missing shard or any defect of the file.
        """
        first, shards = find_shards(Path(path))
        gguf = cls(first, shards)
        try:
            gguf._check_split()
        except BaseException:
            gguf.close()
            raise
        return gguf

    def close(self) -> None:
        """Unmap the file; safe twice."""
        self._map.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def file_size(self) -> int:
        """Bytes of all shards."""
        return len(self._map) + sum(shard.stat().st_size for shard in self.shards[1:])

    # ---- what the file says -------------------------------------------------------------------------------------

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Key -> int, float, bool, str, StringArray or NumberArray, in file order."""
        return self._metadata

    @property
    def architecture(self) -> str | None:
        """`general.architecture`, None where the file has none (vocabulary-only files may)."""
        architecture: str | None = self.get("general.architecture", str)
        return architecture

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Tensor headers of all shards, checked against the files' sizes; parsed at the first use.

        Raises ModelFileError: a shard's data is cut off, overlaps, or has a type or shape that cannot be.
        """
        if self._tensors is None:
            found = list(self._scan_tensors())
            for number, shard in enumerate(self.shards[1:], 1):
                with GgufFile(shard, (shard,)) as part:
                    part._check_shard_number(number, len(self.shards))
                    found.extend(part._scan_tensors())
            self._check_unique(found)
            self._tensors = tuple(found)
        return self._tensors

    @property
    def num_parameters(self) -> int:
        """Values in all tensors."""
        return sum(tensor.num_values for tensor in self.tensors)

    @property
    def bytes_by_type(self) -> dict[str, int]:
        """Bytes of tensor data by type name, largest first."""
        totals: dict[str, int] = {}
        for tensor in self.tensors:
            totals[tensor.type.name] = totals.get(tensor.type.name, 0) + tensor.num_bytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    @property
    def quantization(self) -> str | None:
        """Label such as Q4_K_M out of general.file_type; else the type that most bytes have; None without tensors."""
        label = FILE_TYPES.get(self.get("general.file_type", int, -1))
        return label or next(iter(self.bytes_by_type), None)

    def head_bytes(self) -> bytes:
        """A GGUF file with all metadata and no tensors: what a tokenizer and a template need."""
        return self._map[:8] + bytes(8) + self._map[16 : self._tensors_at]

    def get(self, key: str, kind: type[T], default: T | None = None) -> Any:
        """Scalar `key` as `kind`, or `default` where there is no such key. Raises ModelFileError on another type."""
        value = self._metadata.get(key, default)
        if value is None:
            return None
        is_right = isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool))
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not is_right:
            self._fail(f"metadata {key!r} is {_type_name(value)}; it should be {kind.__name__}")
        return value

    def get_strings(self, key: str) -> StringArray | None:
        """Array of strings under `key`, None where there is none. Raises ModelFileError on another type."""
        value = self._metadata.get(key)
        if value is not None and not isinstance(value, StringArray):
            self._fail(f"metadata {key!r} is {_type_name(value)}; it should be an array of strings")
        return value

    def get_numbers(self, key: str) -> NumberArray | None:
        """Array of numbers under `key`, None where there is none. Raises ModelFileError on another type."""
        value = self._metadata.get(key)
        if value is not None and not isinstance(value, NumberArray):
            self._fail(f"metadata {key!r} is {_type_name(value)}; it should be an array of numbers")
        return value

    # ---- parsing ------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        try:
            num_keys = self._scan_header()
            self._metadata = dict(self._scan_metadata(num_keys))
        except (struct.error, OverflowError, IndexError):
            self._fail_truncated()
        alignment = self.get("general.alignment", int, 32)
        if alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 30:
            self._fail(f"general.alignment is {alignment}; it should be a power of two")
        self.alignment: int = alignment

    def _scan_header(self) -> int:
        magic = self._map[:4]
        if magic != b"GGUF":
            self._fail(f"it begins with {magic!r}; a GGUF file begins with b'GGUF'")
        (self.version,) = _U32.unpack_from(self._map, 4)
        if self.version & 0xFFFF == 0 and self.version:
            self._fail("it is a big-endian file; convert it with llama.cpp's gguf_convert_endian.py")
        if self.version not in (2, 3):
            self._fail(f"it is GGUF version {self.version}; versions 2 and 3 can be read; download a newer conversion")
        self._num_tensors, num_keys = struct.unpack_from("<QQ", self._map, 8)
        if self._num_tensors > MAX_TENSORS:
            self._fail(f"it claims {self._num_tensors} tensors; at most {MAX_TENSORS} are allowed")
        if num_keys > MAX_KEYS:
            self._fail(f"it claims {num_keys} metadata keys; at most {MAX_KEYS} are allowed")
        return int(num_keys)

    def _scan_metadata(self, num_keys: int) -> Iterator[tuple[str, Any]]:
        offset, self._num_strings = 24, 0
        seen: set[str] = set()
        for index in range(num_keys):
            raw, offset = self._read_string(offset, MAX_KEY_BYTES, f"metadata key {index}")
            key = self._decode(raw, f"metadata key {index}")
            if not key or key in seen:
                self._fail(f"metadata key {index} is {'twice there' if key else 'empty'}: {key!r}")
            seen.add(key)
            (kind,) = _U32.unpack_from(self._map, offset)
            value, offset = self._read_value(key, kind, offset + 4)
            yield key, value
        self._tensors_at = offset

    def _read_value(self, key: str, kind: int, offset: int) -> tuple[Any, int]:
        if kind in _SCALARS:
            (value,) = _SCALARS[kind].unpack_from(self._map, offset)
            return value, offset + SCALAR_SIZES[kind]
        if kind == STRING:
            raw, offset = self._read_string(offset, MAX_STRING_BYTES, f"value of {key!r}")
            return self._decode(raw, f"value of {key!r}"), offset
        if kind == ARRAY:
            return self._read_array(key, offset)
        self._fail(f"metadata {key!r} has value type {kind}; types 0 to 12 exist")

    def _read_array(self, key: str, offset: int) -> tuple[StringArray | NumberArray, int]:
        kind, count = _ARRAY_HEAD.unpack_from(self._map, offset)
        offset += _ARRAY_HEAD.size
        least = count * SCALAR_SIZES.get(kind, 8)
        if least > len(self._map) - offset:
            self._fail(f"metadata {key!r} claims {count} elements, more than the rest of the file can hold")
        if least > MAX_ARRAY_BYTES:
            self._fail(
                f"metadata {key!r} claims {count} elements; arrays of at most {MAX_ARRAY_BYTES >> 20} MiB are read"
            )
        if kind in _SCALARS:
            return NumberArray(self._map, offset, count, SCALAR_FORMATS[kind]), offset + least
        if kind != STRING:
            nested = "an array in an array" if kind == ARRAY else f"element type {kind}"
            self._fail(f"metadata {key!r} holds {nested}; only arrays of numbers or strings are allowed")
        end = self._skip_strings(key, offset, count)
        return StringArray(self._map, offset, end, count), end

    def _skip_strings(self, key: str, offset: int, count: int) -> int:
        self._num_strings += count
        if self._num_strings > MAX_STRINGS:
            self._fail(f"metadata {key!r} brings the strings to {self._num_strings}; at most {MAX_STRINGS} are read")
        data, length_at, start = self._map, _U64.unpack_from, offset
        for _ in range(count):
            offset += 8 + length_at(data, offset)[0]
        if offset > len(data):
            self._fail_truncated()
        if offset - start > MAX_ARRAY_BYTES:
            self._fail(f"metadata {key!r} is {offset - start} bytes; at most {MAX_ARRAY_BYTES >> 20} MiB are read")
        return offset

    def _read_string(self, offset: int, limit: int, what: str) -> tuple[bytes, int]:
        (length,) = _U64.unpack_from(self._map, offset)
        end = offset + 8 + length
        if end > len(self._map):
            self._fail(
                f"{what} claims {length} bytes at offset {offset}, past the end of the file ({len(self._map)} bytes)"
            )
        if length > limit:
            self._fail(f"{what} is {length} bytes long; at most {limit} are allowed")
        return self._map[offset + 8 : end], end

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self._fail(f"{what} is not UTF-8 (byte {error.start} is 0x{raw[error.start]:02x})")

    # ---- tensors ------------------------------------------------------------------------------------------------

    def _scan_tensors(self) -> list[TensorInfo]:
        offset, tensors = self._tensors_at, []
        try:
            for index in range(self._num_tensors):
                tensor, offset = self._read_tensor(index, offset)
                tensors.append(tensor)
        except (struct.error, OverflowError, IndexError):
            self._fail_truncated()
        self.data_at = -(-offset // self.alignment) * self.alignment
        self._check_data(tensors, self.data_at)
        return tensors

    def _read_tensor(self, index: int, offset: int) -> tuple[TensorInfo, int]:
        raw, offset = self._read_string(offset, MAX_TENSOR_NAME_BYTES, f"name of tensor {index}")
        name = self._decode(raw, f"name of tensor {index}")
        (num_dims,) = _U32.unpack_from(self._map, offset)
        if num_dims > MAX_DIMS:
            self._fail(f"tensor {name!r} has {num_dims} dimensions; at most {MAX_DIMS} are allowed")
        shape = struct.unpack_from(f"<{num_dims}Q", self._map, offset + 4)
        offset += 4 + 8 * num_dims
        kind, data_offset = struct.unpack_from("<IQ", self._map, offset)
        if kind not in TENSOR_TYPES:
            self._fail(f"tensor {name!r} has type {kind}, which this version does not know")
        return self._make_tensor(name, shape, TENSOR_TYPES[kind], data_offset), offset + 12

    def _make_tensor(self, name: str, shape: tuple[int, ...], kind: TensorType, offset: int) -> TensorInfo:
        num_values = 1
        for size in shape:
            num_values *= size
        if num_values >= 1 << 63 or (shape and shape[0] % kind.block_len):
            self._fail(f"tensor {name!r} of type {kind.name} cannot have the shape {list(shape)}")
        return TensorInfo(name, shape, kind, offset, num_values // kind.block_len * kind.block_bytes)

    def _check_data(self, tensors: list[TensorInfo], data_at: int) -> None:
        expected = 0
        for tensor in tensors:
            if tensor.offset != expected:
                self._fail(
                    f"tensor {tensor.name!r} begins at data offset {tensor.offset}; it should begin at {expected}"
                )
            end = data_at + tensor.offset + tensor.num_bytes
            if end > len(self._map):
                size = len(self._map)
                self._fail(f"tensor {tensor.name!r} ends at byte {end} of {size}: it is cut off; download it again")
            expected += -(-tensor.num_bytes // self.alignment) * self.alignment

    def _check_unique(self, tensors: list[TensorInfo]) -> None:
        seen: set[str] = set()
        for tensor in tensors:
            if tensor.name in seen:
                self._fail(f"tensor {tensor.name!r} is there twice")
            seen.add(tensor.name)

    # ---- shards and errors --------------------------------------------------------------------------------------

    def _check_split(self) -> None:
        count = self.get("split.count", int, 0)
        if count > 1 and len(self.shards) != count:
            self._fail(
                f"it is one of {count} shards; its name must end in -00001-of-{count:05d}.gguf, as the others' names"
            )
        if len(self.shards) > 1:
            self._check_shard_number(0, len(self.shards))

    def _check_shard_number(self, number: int, count: int) -> None:
        got = (self.get("split.no", int, -1), self.get("split.count", int, 0))
        if got != (number, count):
            self._fail(f"it says it is shard {got[0] + 1} of {got[1]}; by its name it is shard {number + 1} of {count}")

    def _fail(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self.path} cannot be read as GGUF: {problem}")

    def _fail_truncated(self) -> NoReturn:
        self._fail(
            f"it ends within its header, after {len(self._map)} bytes: it is cut off or corrupt; download it again"
        )


def _map_file(path: Path) -> mmap.mmap:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise ModelNotFound(f"{path}: no such file") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ModelFileError(f"{path} is {kind}; a GGUF file is wanted")
        if status.st_size < 24:
            raise ModelFileError(f"{path} cannot be read as GGUF: it has {status.st_size} bytes, a header alone has 24")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def _type_name(value: object) -> str:
    return f"an array ({type(value).__name__})" if isinstance(value, StringArray | NumberArray) else f"{value!r:.80}"
