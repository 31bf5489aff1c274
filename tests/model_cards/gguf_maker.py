"""Small GGUF files, written field by field so that tests can write wrong ones too."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """Type and bytes of a metadata value."""
    if isinstance(item, bool):
        return struct.pack("<I?", BOOL, item)
    if isinstance(item, int):
        return struct.pack("<Ii", INT32, item) if item < 0 else struct.pack("<II", UINT32, item)
    if isinstance(item, float):
        return struct.pack("<If", FLOAT32, item)
    if isinstance(item, str):
        return struct.pack("<I", STRING) + string(item)
    kind = STRING if isinstance(item[0], str | bytes) else FLOAT32 if isinstance(item[0], float) else INT32
    head = struct.pack("<IIQ", ARRAY, kind, len(item))
    if kind == STRING:
        return head + b"".join(map(string, item))
    return head + struct.pack(f"<{len(item)}{'f' if kind == FLOAT32 else 'i'}", *item)


def pair(key: str | bytes, item: Any) -> bytes:
    return string(key) + value(item)


def header(num_tensors: int, num_keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]] | None = None, version: int = 3) -> bytes:
    """A whole file; tensors are F32 of the given shapes."""
    tensors = tensors or {}
    head = header(len(tensors), len(metadata), version) + b"".join(pair(k, v) for k, v in metadata.items())
    offset, sizes = 0, []
    for name, shape in tensors.items():
        count = 1
        for size in shape:
            count *= size
        head += tensor(name, shape, 0, offset)
        sizes.append(count * 4)
        offset += -(-count * 4 // 32) * 32
    return head + bytes(-len(head) % 32) + bytes(offset)


SPM_TOKENS = [
    "<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
    "\u2581", "a", "b", "c", "\u2581a", "ab", "\u2581ab", "abc", "\u2581\u2581", "<|im_end|>", "<tool>",
]  # fmt: skip
SPM_TYPES = [2, 3, 3] + [6] * 256 + [1] * 9 + [3, 4]


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """A tiny SentencePiece vocabulary as llama.cpp's converter writes it."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 15,
        "llama.context_length": 128,
        "llama.block_count": 1,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": SPM_TOKENS,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(n) for n in range(9)] + [0.0, 0.0],
        "tokenizer.ggml.token_type": SPM_TYPES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
    }
    return metadata | {key.replace("__", "."): item for key, item in changes.items()}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
