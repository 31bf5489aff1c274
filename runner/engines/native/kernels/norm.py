"""RMSNorm in Triton, alone and joined with the addition before it; one program a row. LayerNorm is torch's own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm_kernel(
    x_ptr, delta_ptr, weight_ptr, out_ptr, x_stride, delta_stride, size, eps, HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_here = columns < size
    x = tl.load(x_ptr + row * x_stride + columns, mask=is_here, other=0.0)
    if HAS_DELTA:
        # rounded to x's dtype first: the residual that later layers see
        x = x + tl.load(delta_ptr + row * delta_stride + columns, mask=is_here, other=0.0).to(x.dtype)
        tl.store(x_ptr + row * x_stride + columns, x, mask=is_here)
    wide = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    weight = tl.load(weight_ptr + columns, mask=is_here, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + columns, (wide * factor * weight).to(out_ptr.dtype.element_ty), mask=is_here)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See Ops.rms_norm; x [..., n], contiguous in n."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return _launch(rows, None, weight, eps).view(x.shape)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See Ops.add_rms_norm; x and delta [rows, n]."""
    return _launch(x, delta, weight, eps)


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    size = x.shape[1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(size)
    _rms_norm_kernel[(len(x),)](
        x, x if delta is None else delta, weight, out, x.stride(0), 0 if delta is None else delta.stride(0), size, eps,
        HAS_DELTA=delta is not None, BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out
