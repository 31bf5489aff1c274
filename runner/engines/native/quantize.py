"""--quantize: weights become int8 or int4 as they are loaded, one module at a time. Knows no checkpoints (packed.py).

int8 is symmetric with one scale an output row, int4 has a scale and a zero for each group of columns. Embedding and
head are int8 in both cases; routers stay as they are: they are small, and a wrong expert costs more than a rounded one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from runner.engines.native.kernels.torch_quantized import pack_nibbles
from runner.engines.native.layers.embedding import Embedding, Head
from runner.engines.native.layers.linear import Linear
from runner.engines.native.layers.moe import Experts
from runner.engines.native.layers.quantized_linear import (
    QuantizedEmbedding,
    QuantizedExperts,
    QuantizedHead,
    QuantizedLinear,
    QuantizedMatrix,
)
from runner.errors import EngineStartFailed

Kind = Literal["int8", "int4"]
GROUP_SIZES = (128, 64, 32)
_EXEMPT = ("router", "shared_gate")
_SHARES = (0.9, 0.8)
"""Of a group's range, tried for int4."""
_PIECE_ROWS = 1024
"""Rows quantised at once: bounds the float32 copies."""


class Quantizer:
    """A `replace` of loader.load(): (path, filled module) -> its quantised form, or None for one that stays."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._embedding: QuantizedMatrix | None = None

    def __call__(self, path: str, module: nn.Module) -> nn.Module | None:
        """Raises EngineStartFailed for a weight that cannot be quantised so."""
        if path.endswith(_EXEMPT):
            return None
        if isinstance(module, Linear):
            return QuantizedLinear(module, [quantize(module.weight, self._kind, path)])
        if isinstance(module, Experts):
            gate_up = [[quantize(weight, self._kind, path)] for weight in module.gate_up]
            return QuantizedExperts(module, gate_up, [quantize(weight, self._kind, path) for weight in module.down])
        if isinstance(module, Embedding):
            self._embedding = quantize(module.weight, "int8", path)
            return QuantizedEmbedding(module, self._embedding)
        return self._head(module, path) if isinstance(module, Head) else None

    def _head(self, head: Head, path: str) -> QuantizedHead:
        """A tied head comes after its embedding and shares its matrix."""
        matrix = self._embedding if head.weight is None else quantize(head.weight, "int8", path)
        assert matrix is not None
        return QuantizedHead(head, matrix)


def quantize(weight: Tensor, kind: Kind, name: str) -> QuantizedMatrix:
    """A weight [out, in], on its own device. Raises EngineStartFailed naming it."""
    if not weight.is_floating_point():
        raise EngineStartFailed(f"--quantize {kind}: {name} is {weight.dtype} already")
    if kind == "int8":
        pieces = [_int8(piece.float()) for piece in torch.split(weight, _PIECE_ROWS)]
        q, scales = (torch.cat(part) for part in zip(*pieces, strict=True))
        return QuantizedMatrix(q, scales)
    group = group_size(weight.shape[1])
    if group is None:
        raise EngineStartFailed(
            f"--quantize int4: {name} has {weight.shape[1]:,} columns on each rank; int4 needs a multiple of "
            f"{GROUP_SIZES[-1]}: use --quantize int8, or a smaller --tensor-parallel-size"
        )
    parts = [_int4(piece.float(), group) for piece in torch.split(weight, _PIECE_ROWS)]
    packed, steps, zeros = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantizedMatrix(packed, steps, zeros)


def group_size(columns: int) -> int | None:
    """Columns that share a scale, the most that divides them; None where nothing does."""
    return next((size for size in GROUP_SIZES if columns % size == 0), None)


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [out, in] -> int8 [out, in], scales [out, 1]."""
    scales = weight.abs().amax(1, keepdim=True).clamp_min_(1e-12) / 127
    return (weight / scales).round_().clamp_(-127, 127).to(torch.int8), scales


def _int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [out, in] -> packed uint8 [out, in / 2], scales float32 and zeros uint8 [out, groups].

    Of several ranges, which cut off more or less of a group's ends, the one with the least squared error.
    """
    grouped = weight.view(len(weight), -1, group)
    low, high = grouped.amin(-1).clamp_max_(0), grouped.amax(-1).clamp_min_(0)
    best = _codes(grouped, low, high)
    for share in _SHARES:
        other = _codes(grouped, low * share, high * share)
        is_better = other.error < best.error
        best = _Int4(*(torch.where(is_better if part.dim() == 2 else is_better.unsqueeze(-1), part, old)
                       for part, old in zip(other, best, strict=True)))  # fmt: skip
    return pack_nibbles(best.q.view(weight.shape)), best.scales, best.zeros.to(torch.uint8)


class _Int4(NamedTuple):
    """q uint8 [out, groups, group]; the rest [out, groups]."""

    q: Tensor
    scales: Tensor
    zeros: Tensor
    error: Tensor


def _codes(grouped: Tensor, low: Tensor, high: Tensor) -> _Int4:
    """The range [low, high], which holds 0, in 15 steps of which one is exactly 0."""
    scales = ((high - low) / 15).clamp_min_(1e-12)
    zeros = (-low / scales).round_()
    q = (grouped / scales.unsqueeze(-1)).add_(zeros.unsqueeze(-1)).round_().clamp_(0, 15)
    error = ((q - zeros.unsqueeze(-1)) * scales.unsqueeze(-1)).sub_(grouped).square_().sum(-1)
    return _Int4(q.to(torch.uint8), scales, zeros, error)
