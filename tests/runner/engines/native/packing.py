"""Toy checkpoints in the formats of AWQ, GPTQ and compressed-tensors, written number by number from their published
packing; shares no code with what reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Quantized:
    """q [out, in] and zeros [out, groups] from 0 to 2^bits - 1, scales float16 [out, groups], group of each column."""

    bits: int
    q: NDArray[np.int64]
    scales: NDArray[np.float16]
    zeros: NDArray[np.int64]
    group_of: NDArray[np.int64]

    def dense(self) -> Any:
        """float32 [out, in]"""
        scales = self.scales.astype(np.float32)[:, self.group_of]
        return torch.from_numpy((self.q - self.zeros[:, self.group_of]).astype(np.float32) * scales)


def quantized(
    weight: Any, bits: int, group: int, *, is_symmetric: bool, order: NDArray[np.int64] | None = None
) -> Quantized:
    """Round to nearest. `order`: columns in the order in which groups take them (act-order)."""
    w = weight.float().numpy()
    width, top = w.shape[1], 2**bits - 1
    group_of = np.empty(width, np.int64)
    group_of[np.arange(width) if order is None else order] = np.arange(width) // group
    scales, zeros = [], []
    for index in range(width // group):
        part = w[:, group_of == index]
        if is_symmetric:
            scales.append(2 * np.abs(part).max(1) / top)
            zeros.append(np.full(len(w), 2 ** (bits - 1)))
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scales.append((high - low) / top)
            zeros.append(np.clip(np.round(-low / scales[-1]), 1, top))
    half, offsets = np.stack(scales, 1).astype(np.float16), np.stack(zeros, 1).astype(np.int64)
    q = np.round(w / half.astype(np.float32)[:, group_of]) + offsets[:, group_of]
    return Quantized(bits, np.clip(q, 0, top).astype(np.int64), half, offsets, group_of)


def pack(values: NDArray[np.int64], bits: int, order: tuple[int, ...] | None = None) -> Any:
    """[a, b] -> int32 [a, ceil(b / n)]: nibble or byte i of a word is value order[i]."""
    n = 32 // bits
    order = order or tuple(range(n))
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % n)))
    words = np.zeros((len(values), padded.shape[1] // n), np.uint32)
    for row in range(words.shape[0]):
        for word in range(words.shape[1]):
            for i in range(n):
                words[row, word] |= np.uint32(int(padded[row, word * n + order[i]]) << (bits * i))
    return torch.from_numpy(words.view(np.int32).copy())


def gptq(base: str, w: Quantized, version: int = 1) -> dict[str, Any]:
    """AutoGPTQ: everything [in, out]."""
    return {
        f"{base}.qweight": pack(w.q, w.bits).t().contiguous(),
        f"{base}.qzeros": pack(w.zeros.T - (1 if version == 1 else 0), w.bits),
        f"{base}.scales": torch.from_numpy(w.scales.T.copy()),
        f"{base}.g_idx": torch.from_numpy(w.group_of.astype(np.int32)),
    }


def awq(base: str, w: Quantized) -> dict[str, Any]:
    """AutoAWQ, version gemm."""
    return {
        f"{base}.qweight": pack(w.q.T, 4, AWQ_ORDER),
        f"{base}.qzeros": pack(w.zeros.T, 4, AWQ_ORDER),
        f"{base}.scales": torch.from_numpy(w.scales.T.copy()),
    }


def compressed(base: str, w: Quantized, *, is_symmetric: bool, has_order: bool = False) -> dict[str, Any]:
    """compressed-tensors, pack-quantized."""
    tensors = {
        f"{base}.weight_packed": pack(w.q, w.bits),
        f"{base}.weight_scale": torch.from_numpy(w.scales.copy()),
        f"{base}.weight_shape": torch.tensor(w.q.shape),
    }
    if not is_symmetric:
        tensors[f"{base}.weight_zero_point"] = pack(w.zeros.T, w.bits).t().contiguous()
    if has_order:
        tensors[f"{base}.weight_g_idx"] = torch.from_numpy(w.group_of.astype(np.int32))
    return tensors


def write_pair(folder: Path, stated: dict[str, Any], pack_one: Any, make: Any) -> tuple[Path, Path]:
    """From a saved float model: folders `packed` (its projections by `pack_one(base, make(name, weight))`, `stated` in
    config.json) and `dense` (the same numbers as floats)."""
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    packed, dense = dict(weights), dict(weights)
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            result = make(name, weight)
            dense[name] = result.dense()
            del packed[name]
            packed.update(pack_one(name.removesuffix(".weight"), result))
    folders = folder / "packed", folder / "dense"
    for path, tensors, extra in zip(folders, (packed, dense), ({"quantization_config": stated}, {}), strict=True):
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(config | extra))
    return folders
