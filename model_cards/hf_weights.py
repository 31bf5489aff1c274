"""The weight files of a Hugging Face folder: which they are, how large, how many parameters.

Reads headers only. Knows nothing of configuration or tokenizers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_MAX_HEADER_BYTES = 100 * 1024 * 1024  # the bound of the safetensors format itself
_PACKED = ("U8", "I8", "I32", "U32")
"""Quantised weights may pack several values into one of these."""


def weight_files(folder: Path) -> list[Path]:
    """The files an engine would load: safetensors, else PyTorch's `.bin`; not a second copy (`consolidated`)."""
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    sharded = [path for path in files if not path.name.startswith("consolidated")]
    return sharded or files or sorted(folder.glob("pytorch_model*.bin"))


def describe_weights(folder: Path) -> dict[str, Any]:
    """`file_size` in bytes and, where headers can be read, `parameters`; empty without weights."""
    files = weight_files(folder)
    if not files:
        return {}
    details: dict[str, Any] = {"file_size": sum(path.stat().st_size for path in files)}
    if len(files) > 1:
        details["shards"] = len(files)
    counts = [_num_parameters(path) for path in files]
    total = sum(count for count in counts if count is not None)
    if total and None not in counts:
        details["parameters"] = total
    return details


def _num_parameters(path: Path) -> int | None:
    """Values in one safetensors file; None where that cannot be told (https://huggingface.co/docs/safetensors)."""
    if path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, path.stat().st_size):
                return None
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError):
        return None
    total = 0
    for name, tensor in header.items() if isinstance(header, dict) else ():
        if name == "__metadata__" or not isinstance(tensor, dict):
            continue
        if tensor.get("dtype") in _PACKED:
            return None
        shape = tensor.get("shape")
        total += math.prod(shape) if isinstance(shape, list) and all(isinstance(n, int) for n in shape) else 0
    return total
