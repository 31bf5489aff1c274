"""Quantised weights and the modules that take the place of Linear, Experts, Embedding and Head.

Owns the canonical layout. Knows neither how weights are quantised (quantize.py) nor checkpoints (packed.py).

    8 bits   q int8 [out, in], scales float32 [out, groups], zeros int16 or none: w = (q - zero) * scale
    4 bits   q uint8 [out, in / 2], low nibble = even column, scales float32 and zeros uint8 [out, groups]
    groups are equal runs of columns; with `perm` the columns are stored in the order x[:, perm] (GPTQ's act-order)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.engines.native.kernels.torch_ops import OPS, by_expert, gate
from runner.engines.native.kernels.torch_quantized import unpack_nibbles
from runner.engines.native.layers.embedding import Embedding, Head
from runner.engines.native.layers.linear import Linear
from runner.engines.native.layers.moe import Experts


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)


class QuantizedMatrix(nn.Module):
    """One weight [out, in]."""

    def __init__(self, q: Tensor, scales: Tensor, zeros: Tensor | None = None, perm: Tensor | None = None) -> None:
        super().__init__()
        self.bits = 4 if q.dtype == torch.uint8 else 8
        self.out_features, self.in_features = q.shape[0], q.shape[1] * 8 // self.bits
        self.group_size = self.in_features // scales.shape[1]
        self.q, self.scales = _constant(q), _constant(scales.float())
        self.zeros = None if zeros is None else _constant(zeros)
        self.perm = None if perm is None else _constant(perm)
        self.ops = OPS

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[rows, in] -> [rows, out] in x's dtype."""
        if self.perm is not None:
            x = x.index_select(1, self.perm)
        if self.bits == 4:
            assert self.zeros is not None
            return self.ops.int4_linear(x, self.q, self.scales, self.zeros, bias)
        if self.zeros is None and self.scales.shape[1] == 1:
            return self.ops.int8_linear(x, self.q, self.scales[:, 0], bias)
        return F.linear(x, self._stored().to(x.dtype), bias)  # 8 bits in groups have no kernel

    def dequantize(self) -> Tensor:
        """float32 [out, in], columns in the order of x."""
        weight = self._stored()
        return weight if self.perm is None else torch.empty_like(weight).index_copy_(1, self.perm, weight)

    def rows(self, ids: Tensor) -> Tensor:
        """Some rows, dequantised, float32 [ids, in]; of a weight with 8 bits, one group and no perm."""
        return self.q[ids] * self.scales[ids]

    def drop(self) -> None:
        """Give the memory back, once the weight is kept elsewhere; nothing may be computed after that."""
        self.q = self.scales = _constant(torch.empty(0, dtype=torch.uint8))
        self.zeros = None

    def _stored(self) -> Tensor:
        q = unpack_nibbles(self.q) if self.bits == 4 else self.q
        grouped = q.float().view(self.out_features, -1, self.group_size)
        if self.zeros is not None:
            grouped = grouped - self.zeros.unsqueeze(-1)
        return (grouped * self.scales.unsqueeze(-1)).view(self.out_features, self.in_features)


def join(parts: Sequence[QuantizedMatrix]) -> list[QuantizedMatrix]:
    """The parts as one matrix (rows one below the other), or as they are where their columns differ in kind."""
    first = parts[0]
    alike = all(
        (part.bits, part.group_size, part.zeros is None) == (first.bits, first.group_size, first.zeros is None)
        and _same(part.perm, first.perm)
        for part in parts
    )
    if not alike or len(parts) == 1:
        return list(parts)
    zeros: list[Tensor] = [part.zeros for part in parts if part.zeros is not None]
    q, scales = torch.cat([part.q for part in parts]), torch.cat([part.scales for part in parts])
    return [QuantizedMatrix(q, scales, torch.cat(zeros) if zeros else None, first.perm)]


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    return (left is None and right is None) or (left is not None and right is not None and torch.equal(left, right))


class QuantizedLinear(nn.Module):
    """In the place of a Linear: its split, its bias, its sum over ranks."""

    def __init__(self, linear: Linear, parts: Sequence[QuantizedMatrix]) -> None:
        super().__init__()
        self.matrices = nn.ModuleList(join(parts))
        self.sums_over, self.bias = linear.sums_over, linear.bias
        self._parts: list[nn.Module] = list(self.matrices)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]"""
        if len(self._parts) == 1:
            y: Tensor = self._parts[0](x, self.bias)
        else:
            y = torch.cat([part(x) for part in self._parts], -1)
            y = y if self.bias is None else y.add_(self.bias)
        return y if self.sums_over is None else self.sums_over.all_reduce(y)


class QuantizedExperts(nn.Module):
    """In the place of Experts: two matrices an expert. The host waits for how many tokens each expert has."""

    def __init__(
        self, experts: Experts, gate_up: Sequence[Sequence[QuantizedMatrix]], down: Sequence[QuantizedMatrix]
    ) -> None:
        super().__init__()
        self.activation = experts.activation
        self._gate_up = [join(parts) for parts in gate_up]
        self.gate_up = nn.ModuleList(matrix for parts in self._gate_up for matrix in parts)
        self.down = nn.ModuleList(down)

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """See Experts.forward."""
        return by_expert(x, ids, weights, len(self.down), self._expert)

    def _expert(self, number: int, x: Tensor) -> Tensor:
        up = torch.cat([part(x) for part in self._gate_up[number]], -1)
        out: Tensor = self.down[number](gate(up, self.activation))
        return out


class QuantizedEmbedding(Embedding):
    """In the place of an Embedding, whose weight becomes `matrix` (8 bits a row)."""

    def __init__(self, embedding: Embedding, matrix: QuantizedMatrix) -> None:
        nn.Module.__init__(self)
        self.parallel, self.hidden_size, self.span = embedding.parallel, embedding.hidden_size, embedding.span
        self.dtype, self.matrix = embedding.weight.dtype, matrix

    def look_up(self, rows: Tensor) -> Tensor:
        """See Embedding.look_up."""
        return self.matrix.rows(rows).to(self.dtype)


class QuantizedHead(Head):
    """In the place of a Head; a tied one shares the embedding's `matrix`."""

    def __init__(self, head: Head, matrix: QuantizedMatrix) -> None:
        nn.Module.__init__(self)
        self.spec, self.parallel, self.span, self.bias = head.spec, head.parallel, head.span, head.bias
        self.matrix = matrix

    def project(self, hidden: Tensor) -> Tensor:
        """See Head.project."""
        logits: Tensor = self.matrix(hidden, self.bias)
        return logits
