"""int8 and fp8 for keys and values: symmetric, a float32 scale for each token and head. Knows no blocks (cache.py)."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_kv(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [..., head_dim] -> the same in int8 or float8_e4m3fn, and scales float32 [...]."""
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    x = x.float()
    scale = x.abs().amax(-1).clamp_min_(1e-12) / largest
    scaled = (x / scale.unsqueeze(-1)).clamp_(-largest, largest)  # fp8 would turn what is larger into NaN
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype), scale


def dequantize_kv(q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse, in `dtype`."""
    return (q.float() * scale.unsqueeze(-1)).to(dtype)
