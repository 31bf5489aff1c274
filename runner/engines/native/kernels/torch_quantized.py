"""Quantised weights and KV caches in plain torch: the reference for every kernel, exact in float32, on any device.

Weights are turned into x's dtype some rows at a time, so that the pieces stay in a CPU's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_PIECE_BYTES = 1 << 19
_FEW_ROWS = 4
"""Up to which torch's int8 kernel for bfloat16 is the fastest (AVX512, 768 x 4096: 174 us for 1 row and 609 us for 8; a
dense weight 407 and 432 us, one made dense for the product 860 us)."""


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """See Ops.int8_linear."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(x) <= _FEW_ROWS:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), weight, scale.to(x.dtype))
    else:
        y = _by_pieces(x, len(weight), lambda rows: weight[rows].to(x.dtype)).mul_(scale.to(x.dtype))
    return y if bias is None else y.add_(bias)


def int4_linear(x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None = None) -> Tensor:
    """See Ops.int4_linear."""
    scale, zero = scale.to(x.dtype).unsqueeze(-1), zero.to(x.dtype).unsqueeze(-1)

    def dense(rows: slice) -> Tensor:
        q = unpack_nibbles(weight[rows])
        grouped = q.view(len(q), zero.shape[1], -1).to(x.dtype)
        return grouped.sub_(zero[rows]).mul_(scale[rows]).view(q.shape)

    y = _by_pieces(x, len(weight), dense)
    return y if bias is None else y.add_(bias)


def _by_pieces(x: Tensor, num_rows: int, dense: Callable[[slice], Tensor]) -> Tensor:
    """x W^T, where `dense` gives rows of W."""
    step = num_rows if x.device.type != "cpu" else max(64, _PIECE_BYTES // (x.shape[1] * x.dtype.itemsize))
    pieces = [F.linear(x, dense(slice(start, start + step))) for start in range(0, num_rows, step)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)


def pack_nibbles(q: Tensor) -> Tensor:
    """uint8 [out, in] of values 0..15 -> uint8 [out, in / 2]."""
    return q[:, 0::2] | (q[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse; both nibbles of a byte are spread at once over the bytes of a little-endian int16."""
    spread = packed.to(torch.int16)
    return torch.bitwise_or(spread, spread << 4).bitwise_and_(0x0F0F).view(torch.uint8)


def quantize_kv(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [..., head_dim] -> the same in int8 or float8_e4m3fn, symmetric, and scales float32 [...]."""
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    x = x.float()
    scale = x.abs().amax(-1).clamp_min_(1e-12) / largest
    scaled = (x / scale.unsqueeze(-1)).clamp_(-largest, largest)  # fp8 would turn what is larger into NaN
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype), scale


def dequantize_kv(q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse, in `dtype`."""
    return (q.float() * scale.unsqueeze(-1)).to(dtype)
