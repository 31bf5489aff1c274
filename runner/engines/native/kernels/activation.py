"""Gated activations in Triton: act(gate) * up in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def activate(x, KIND: tl.constexpr):
    """An activation of spec.Activation, float32."""
    if KIND == "silu":
        return x * tl.sigmoid(x)
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        # 0.5 (1 + tanh(z)) is sigmoid(2 z)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "quick_gelu":
        return x * tl.sigmoid(1.702 * x)
    elif KIND == "relu":
        return tl.maximum(x, 0.0)
    else:
        tl.static_assert(KIND == "relu2")
        return tl.maximum(x, 0.0) * tl.maximum(x, 0.0)


@triton.jit
def _gate_kernel(x_ptr, out_ptr, x_stride, size, KIND: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_here = columns < size
    gate = tl.load(x_ptr + row * x_stride + columns, mask=is_here, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + size + columns, mask=is_here, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + columns, (activate(gate, KIND) * up).to(out_ptr.dtype.element_ty), mask=is_here)


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """See Ops.gate."""
    size = gate_up.shape[1] // 2
    out = torch.empty((len(gate_up), size), dtype=gate_up.dtype, device=gate_up.device)
    grid = (len(gate_up), triton.cdiv(size, _BLOCK))
    _gate_kernel[grid](gate_up, out, gate_up.stride(0), size, KIND=activation, BLOCK=_BLOCK, num_warps=4)
    return out
