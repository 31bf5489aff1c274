"""Mixture of experts in Triton: rows sorted by expert, then one grouped product for each of the two weights.

Each expert's rows are padded to whole tiles, so a tile has one expert. All shapes depend on the number of tokens only:
the host never waits (the design of vLLM's fused_moe).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from runner.engines.native.kernels.activation import gate


@triton.jit
def _grouped_kernel(
    x_ptr, weight_ptr, out_ptr, places_ptr, experts_ptr, factors_ptr, num_places, num_experts, n, k,
    TOP_K: tl.constexpr, HAS_FACTORS: tl.constexpr, TILES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[place] = x[place // TOP_K] @ weight[expert].T (* factor); program (tile of rows, tile of n)."""
    # tiles of one expert that read the same part of its weight run side by side
    STRIPE: tl.constexpr = 8
    num_columns = tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    stripe = program // (STRIPE * num_columns)
    height = tl.minimum(TILES - stripe * STRIPE, STRIPE)
    tile = stripe * STRIPE + program % (STRIPE * num_columns) % height
    column = program % (STRIPE * num_columns) // height
    expert = tl.load(experts_ptr + tile)
    if expert >= num_experts:
        return
    places = tl.load(places_ptr + tile * BLOCK_M + tl.arange(0, BLOCK_M))
    is_place = places < num_places
    rows = column * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = rows < n
    columns = tl.arange(0, BLOCK_K)
    x_places = (places // TOP_K).to(tl.int64)[:, None] * k + columns[None, :]
    w_places = (expert.to(tl.int64) * n + rows)[:, None] * k + columns[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, k, BLOCK_K):
        is_column = start + columns < k
        x = tl.load(x_ptr + x_places + start, mask=is_place[:, None] & is_column[None, :], other=0.0)
        w = tl.load(weight_ptr + w_places + start, mask=is_row[:, None] & is_column[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    if HAS_FACTORS:
        acc *= tl.load(factors_ptr + places, mask=is_place, other=0.0)[:, None]
    out_places = places.to(tl.int64)[:, None] * n + rows[None, :]
    tl.store(out_ptr + out_places, acc.to(out_ptr.dtype.element_ty), mask=is_place[:, None] & is_row[None, :])


def moe(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """See Ops.moe."""
    num_tokens, top_k = ids.shape
    block_m = _tile_rows(num_tokens * top_k, len(gate_up))
    places, experts = sort_by_expert(ids, len(gate_up), block_m)
    hidden = _grouped(x.contiguous(), gate_up, places, experts, None, num_tokens * top_k, top_k, block_m)
    out = _grouped(gate(hidden, activation), down, places, experts, weights, num_tokens * top_k, 1, block_m)
    return out.view(num_tokens, top_k, -1).sum(1)


def sort_by_expert(ids: Tensor, num_experts: int, block_m: int) -> tuple[Tensor, Tensor]:
    """ids [tokens, k] -> (places [tiles * block_m] int32, each an index into ids.view(-1), or one past its end for
    padding; expert of each tile [tiles] int32, num_experts for unused tiles)."""
    flat = ids.reshape(-1)
    num, device = flat.numel(), flat.device
    num_tiles = triton.cdiv(num + min(num, num_experts) * (block_m - 1), block_m)
    order = flat.argsort(stable=True)
    chosen = flat.index_select(0, order)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=device).scatter_add_(0, flat, torch.ones_like(flat))
    ends = ((counts + (block_m - 1)) // block_m * block_m).cumsum(0)
    # how far an expert's rows move for the padding before it
    shifts = torch.nn.functional.pad(ends, (1, 0))[:-1] - (counts.cumsum(0) - counts)
    targets = torch.arange(num, device=device) + shifts.index_select(0, chosen)
    places = torch.full((num_tiles * block_m,), num, dtype=torch.int32, device=device)
    places.scatter_(0, targets, order.to(torch.int32))
    firsts = torch.arange(0, num_tiles * block_m, block_m, device=device)
    return places, torch.searchsorted(ends, firsts, right=True).to(torch.int32)


def _grouped(
    x: Tensor, weight: Tensor, places: Tensor, experts: Tensor, factors: Tensor | None, num_places: int, top_k: int,
    block_m: int,
) -> Tensor:  # fmt: skip
    num_experts, n, k = weight.shape
    out = torch.empty((num_places, n), dtype=x.dtype, device=x.device)
    shape = _shape(block_m, x.dtype)
    grid = (len(experts) * triton.cdiv(n, shape["BLOCK_N"]),)
    _grouped_kernel[grid](
        x, weight, out, places, experts, factors, num_places, num_experts, n, k, TOP_K=top_k,
        HAS_FACTORS=factors is not None, TILES=len(experts), BLOCK_M=block_m, **shape,
    )  # fmt: skip
    return out


def _tile_rows(num_places: int, num_experts: int) -> int:
    """About an expert's share of the rows: less padding where there are few."""
    share = -(-num_places // num_experts)
    return min(128, max(16, 1 << (share - 1).bit_length()))


def _shape(block_m: int, dtype: torch.dtype) -> dict[str, Any]:
    if dtype == torch.float32:
        return {"BLOCK_N": 32, "BLOCK_K": 32, "PRECISION": "ieee", "num_warps": 4, "num_stages": 2}
    if block_m <= 32:
        return {"BLOCK_N": 64, "BLOCK_K": 128, "PRECISION": "tf32", "num_warps": 4, "num_stages": 4}
    return {"BLOCK_N": 128, "BLOCK_K": 64, "PRECISION": "tf32", "num_warps": 4 if block_m == 64 else 8, "num_stages": 4}
