"""Products with few rows in Triton: bound by reading the weight, which may be int8 or int4.

Weights are [n, k], x [rows, k]. Formats:

    plain   the dtype of x
    int8    int8 [n, k]; scale [n]                                    w = q * scale
    int4    uint8 [n, k / 2]: the even column in the low four bits, the odd one in the high;
            scale [n, k / group], zero the same or None for 8          w = (q - zero) * scale
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS = 64
"""More rows than this are not bound by the weight: it is unpacked once and cuBLAS multiplies."""


@triton.jit
def _gemv_kernel(
    x_ptr, weight_ptr, scale_ptr, zero_ptr, bias_ptr, out_ptr, n, k,
    KIND: tl.constexpr, GROUP: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One row of x; program (rows of the weight). BLOCK_K counts stored columns (bytes for int4)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    is_row = rows < n
    stored = k // 2 if KIND == "int4" else k
    places = rows.to(tl.int64)[:, None] * stored + columns[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in tl.range(0, stored, BLOCK_K, num_stages=STAGES):
        is_column = start + columns < stored
        w = tl.load(weight_ptr + places + start, mask=is_row[:, None] & is_column[None, :], other=0)
        if KIND == "int4":
            group = start * 2 // GROUP
            even = tl.load(x_ptr + 2 * (start + columns), mask=is_column, other=0.0).to(tl.float32)
            odd = tl.load(x_ptr + 2 * (start + columns) + 1, mask=is_column, other=0.0).to(tl.float32)
            scale = tl.load(scale_ptr + rows * (k // GROUP) + group, mask=is_row, other=0.0).to(tl.float32)
            if HAS_ZERO:
                zero = tl.load(zero_ptr + rows * (k // GROUP) + group, mask=is_row, other=0).to(tl.float32)
            else:
                zero = tl.full([BLOCK_N], 8.0, tl.float32)
            part = (w & 15).to(tl.float32) * even[None, :] + (w >> 4).to(tl.float32) * odd[None, :]
            acc += (part - zero[:, None] * (even + odd)[None, :]) * scale[:, None]
        else:
            x = tl.load(x_ptr + start + columns, mask=is_column, other=0.0).to(tl.float32)
            acc += w.to(tl.float32) * x[None, :]
    total = tl.sum(acc, 1)
    if KIND == "int8":
        total *= tl.load(scale_ptr + rows, mask=is_row, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + rows, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, total.to(out_ptr.dtype.element_ty), mask=is_row)


@triton.jit
def _skinny_kernel(
    x_ptr, weight_ptr, scale_ptr, zero_ptr, bias_ptr, out_ptr, m, n, k, x_stride,
    KIND: tl.constexpr, GROUP: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All rows of x (at most BLOCK_M) at once; program (rows of the weight)."""
    tokens = tl.arange(0, BLOCK_M)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    is_token = tokens < m
    is_row = rows < n
    stored = k // 2 if KIND == "int4" else k
    weights = rows.to(tl.int64)[:, None] * stored + columns[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, stored, BLOCK_K):
        is_column = start + columns < stored
        is_x = is_token[:, None] & is_column[None, :]
        w = tl.load(weight_ptr + weights + start, mask=is_row[:, None] & is_column[None, :], other=0)
        if KIND == "int4":
            x_even = x_ptr + tokens[:, None] * x_stride + 2 * (start + columns)[None, :]
            even = tl.load(x_even, mask=is_x, other=0.0)
            odd = tl.load(x_even + 1, mask=is_x, other=0.0)
            group = start * 2 // GROUP
            scale = tl.load(scale_ptr + rows * (k // GROUP) + group, mask=is_row, other=0.0).to(tl.float32)
            if HAS_ZERO:
                zero = tl.load(zero_ptr + rows * (k // GROUP) + group, mask=is_row, other=0).to(tl.float32)
            else:
                zero = tl.full([BLOCK_N], 8.0, tl.float32)
            low = ((w & 15).to(tl.float32) - zero[:, None]).to(even.dtype)
            high = ((w >> 4).to(tl.float32) - zero[:, None]).to(even.dtype)
            part = tl.dot(even, tl.trans(low), input_precision=PRECISION)
            part = tl.dot(odd, tl.trans(high), part, input_precision=PRECISION)
            acc += part * scale[None, :]
        else:
            x = tl.load(x_ptr + tokens[:, None] * x_stride + (start + columns)[None, :], mask=is_x, other=0.0)
            acc = tl.dot(x, tl.trans(w.to(x.dtype)), acc, input_precision=PRECISION)
    if KIND == "int8":
        acc *= tl.load(scale_ptr + rows, mask=is_row, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + rows, mask=is_row, other=0.0).to(tl.float32)[None, :]
    places = tokens[:, None] * n + rows[None, :]
    tl.store(out_ptr + places, acc.to(out_ptr.dtype.element_ty), mask=is_token[:, None] & is_row[None, :])


class Shape(NamedTuple):
    """Work of one program: rows and stored columns of the weight, warps, pipeline stages."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, shape: Shape | None = None) -> Tensor:
    """x [..., k] -> [..., n]; one row by our kernel, more by cuBLAS. `shape` is for measuring."""
    if x.numel() != weight.shape[1] or not x.is_contiguous() or weight.dtype != x.dtype:
        return F.linear(x, weight, bias)
    return _few_rows(x, weight, None, None, bias, "plain", 1, shape)


def int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, shape: Shape | None = None
) -> Tensor:
    """x [..., k], weight int8 [n, k], scale [n] -> [..., n] in x's dtype."""
    if x.numel() > MAX_ROWS * x.shape[-1]:
        y = F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)
        return y if bias is None else y + bias
    return _few_rows(x, weight, scale, None, bias, "int8", 1, shape)


def int4_linear(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None = None, bias: Tensor | None = None,
    shape: Shape | None = None,
) -> Tensor:  # fmt: skip
    """x [..., k], weight uint8 [n, k / 2], scale and zero [n, k / group] -> [..., n]."""
    group = x.shape[-1] // scale.shape[1]
    if x.numel() > MAX_ROWS * x.shape[-1] or group % 32:
        return F.linear(x, unpack_int4(weight, scale, zero, x.dtype), bias)
    return _few_rows(x, weight, scale, zero, bias, "int4", group, shape)


def unpack_int4(weight: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[n, k] in `dtype`."""
    n, groups = scale.shape
    values = torch.stack((weight & 15, weight >> 4), -1).view(n, groups, -1).to(dtype)
    values -= 8 if zero is None else zero.to(dtype).unsqueeze(-1)
    return values.mul_(scale.to(dtype).unsqueeze(-1)).view(n, -1)


def _few_rows(
    x: Tensor, weight: Tensor, scale: Tensor | None, zero: Tensor | None, bias: Tensor | None, kind: str, group: int,
    shape: Shape | None,
) -> Tensor:  # fmt: skip
    n, k = len(weight), x.shape[-1]
    rows = x.reshape(-1, k)
    out = torch.empty((*x.shape[:-1], n), dtype=x.dtype, device=x.device)
    common: dict[str, Any] = {"KIND": kind, "GROUP": group, "HAS_ZERO": zero is not None, "HAS_BIAS": bias is not None}
    tensors = (rows, weight, scale, zero, bias, out)
    shape = shape or _shape(len(rows), kind, group, x.dtype)
    grid = (triton.cdiv(n, shape.rows),)
    common |= {"BLOCK_N": shape.rows, "BLOCK_K": shape.columns, "num_warps": shape.num_warps}
    if len(rows) == 1:
        _gemv_kernel[grid](*tensors, n, k, STAGES=shape.num_stages, **common)
    else:
        block_m = max(16, triton.next_power_of_2(len(rows)))
        precision = "ieee" if x.dtype == torch.float32 else "tf32"
        _skinny_kernel[grid](*tensors, len(rows), n, k, rows.stride(0), BLOCK_M=block_m, PRECISION=precision,
                             num_stages=shape.num_stages, **common)  # fmt: skip
    return out


def _shape(num_rows: int, kind: str, group: int, dtype: torch.dtype) -> Shape:
    """int4 takes at most one group at a time, so that a program has one scale a row."""
    part = min(64, group // 2 & -(group // 2))  # a power of two that divides the bytes of a group
    if num_rows == 1:
        if kind == "int4":
            return Shape(16, part, 4, 4)
        return Shape(8, 1024 if kind == "int8" else 512, 4, 3)
    columns = part if kind == "int4" else (256 if num_rows <= 16 else 128)
    if dtype == torch.float32:
        return Shape(16, min(32, columns), 4, 2)
    return Shape(32, columns, 4, 4 if num_rows <= 16 else 3)
