"""Paged attention in Triton: one kernel for queries in tiles (prompts), one for single queries with the keys split.

Owns scores, masks and the running softmax (FlashAttention-2, arXiv 2307.08691; flash-decoding). Lengths are read on the
device and grids depend on padded shapes only, so that all of it may be captured in a CUDA graph. The query heads that
share a K/V head are packed into the rows of one tile:

    rows of a tile   | q0 h0 | q0 h1 | q1 h0 | q1 h1 | ... |      a group of 2 heads, BLOCK_Q = BLOCK_M // 2 queries
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.cache import LayerCache

_LOG2E = math.log2(math.e)
_MAX_SPLITS = 64
_PROGRAMS = 512
"""What keeps all multiprocessors of an H100 or H200 (132) busy with a few programs each."""


@triton.jit
def _attend(
    acc, top, total, q, start, end, kv_head, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, positions, slopes,
    window, scale, softcap,
    MASKED: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SCALES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys `start`.. (below `end`) joins the running softmax: acc [M, D], its maximum and sum [M]."""
    offsets = tl.arange(0, BLOCK_N)
    channels = tl.arange(0, BLOCK_D)
    keys = start + offsets
    is_here = keys < end
    if BLOCK_SIZE >= BLOCK_N:  # the tile lies in one block: 64 bits for its start only
        block = tl.load(table_ptr + start // BLOCK_SIZE).to(tl.int64)
        first = (block * BLOCK_SIZE + start % BLOCK_SIZE) * KV_HEADS + kv_head
        rows = offsets * KV_HEADS
    else:
        blocks = tl.load(table_ptr + keys // BLOCK_SIZE, mask=is_here, other=0).to(tl.int64)
        first = kv_head.to(tl.int64)
        rows = (blocks * BLOCK_SIZE + keys % BLOCK_SIZE) * KV_HEADS
    places = rows[:, None] * HEAD_DIM + channels[None, :]
    k_tile = k_ptr + first * HEAD_DIM + places
    v_tile = v_ptr + first * HEAD_DIM + places
    if MASKED or HEAD_DIM != BLOCK_D:
        is_loaded = is_here[:, None] & (channels < HEAD_DIM)[None, :]
        k = tl.load(k_tile, mask=is_loaded, other=0.0)
        v = tl.load(v_tile, mask=is_loaded, other=0.0)
    else:
        k = tl.load(k_tile)
        v = tl.load(v_tile)
    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION)
    if HAS_SCALES:
        scores *= tl.load(k_scale_ptr + first + rows, mask=is_here, other=0.0)[None, :]
    scores *= scale
    if HAS_SOFTCAP:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores) - 1.0)
    if HAS_ALIBI:
        scores += slopes[:, None] * (keys[None, :] - positions[:, None]).to(tl.float32)
    if MASKED:
        is_seen = (keys[None, :] <= positions[:, None]) & is_here[None, :]
        if HAS_WINDOW:
            is_seen = is_seen & (keys[None, :] > positions[:, None] - window)
        scores = tl.where(is_seen, scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = new_top
    if MASKED:  # a row that has seen no key yet
        base = tl.where(new_top == -float("inf"), 0.0, new_top)
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(top - base)
    total = total * fade + tl.sum(weights, 1)
    if HAS_SCALES:
        weights *= tl.load(v_scale_ptr + first + rows, mask=is_here, other=0.0)[None, :]
    acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * fade[:, None], input_precision=PRECISION)
    return acc, new_top, total


@triton.jit
def _prefill_kernel(
    q_ptr, out_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, tables_ptr, starts_ptr, lens_ptr, slopes_ptr,
    num_sequences, q_stride, table_stride, window, scale, softcap,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, SKIP_SINGLES: tl.constexpr,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SCALES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (tile, kv_head). Sequence i owns the tiles from starts[i] // BLOCK_Q + i on."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    # the last tiles of a prompt have the most keys: they go first
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // BLOCK_Q + middle <= tile:
            low = middle + 1
        else:
            high = middle
    sequence = low - 1
    start = tl.load(starts_ptr + sequence)
    query_len = tl.load(starts_ptr + sequence + 1) - start
    context_len = tl.load(lens_ptr + sequence)
    first_query = (tile - start // BLOCK_Q - sequence) * BLOCK_Q
    if first_query >= query_len:
        return
    if SKIP_SINGLES and query_len == 1:
        return
    packed = tl.arange(0, BLOCK_M)
    channels = tl.arange(0, BLOCK_D)
    queries = first_query + packed // GROUP
    heads = kv_head * GROUP + packed % GROUP
    is_row = (queries < query_len) & (packed < BLOCK_Q * GROUP)
    is_place = is_row[:, None] & (channels < HEAD_DIM)[None, :]
    tokens = (start + queries).to(tl.int64)
    q = tl.load(q_ptr + (tokens * q_stride + heads * HEAD_DIM)[:, None] + channels[None, :], mask=is_place, other=0.0)
    positions = context_len - query_len + queries
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if HAS_ALIBI:
        slopes = tl.load(slopes_ptr + heads, mask=is_row, other=0.0) * 1.4426950408889634

    first_position = context_len - query_len + first_query
    end = tl.minimum(first_position + BLOCK_Q, context_len)
    table_ptr = tables_ptr + tl.cast(sequence, tl.int64) * table_stride
    begin = 0
    full_end = (first_position + 1) // BLOCK_N * BLOCK_N  # keys that every row sees
    if HAS_WINDOW:
        begin = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
        full_end = begin
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for key in range(begin, full_end, BLOCK_N):
        acc, top, total = _attend(
            acc, top, total, q, key, end, kv_head, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, positions, slopes,
            window, scale, softcap, False, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, HAS_WINDOW, HAS_SOFTCAP,
            HAS_ALIBI, HAS_SCALES, PRECISION,
        )  # fmt: skip
    for key in range(full_end, end, BLOCK_N):
        acc, top, total = _attend(
            acc, top, total, q, key, end, kv_head, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, positions, slopes,
            window, scale, softcap, True, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, HAS_WINDOW, HAS_SOFTCAP,
            HAS_ALIBI, HAS_SCALES, PRECISION,
        )  # fmt: skip
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    places = (tokens * (KV_HEADS * GROUP) + heads)[:, None] * HEAD_DIM + channels[None, :]
    tl.store(out_ptr + places, acc.to(out_ptr.dtype.element_ty), mask=is_place)


@triton.jit
def _decode_kernel(
    q_ptr, out_ptr, partial_ptr, weight_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, tables_ptr, starts_ptr, lens_ptr,
    slopes_ptr, q_stride, table_stride, window, scale, softcap,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SCALES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (sequence, kv_head, split) for sequences with one query; others are left alone. With one split it writes
    the result; else a partial result, normalised, and the logarithm (base 2) of its weight, -inf for no keys."""
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    start = tl.load(starts_ptr + sequence)
    if tl.load(starts_ptr + sequence + 1) - start != 1:
        return
    context_len = tl.load(lens_ptr + sequence)
    first_tile = 0
    if HAS_WINDOW:
        first_tile = tl.maximum(context_len - window, 0) // BLOCK_N
    num_tiles = tl.cdiv(context_len, BLOCK_N) - first_tile
    share = tl.cdiv(num_tiles, SPLITS)
    begin = (first_tile + split * share) * BLOCK_N
    end = tl.minimum((first_tile + (split + 1) * share) * BLOCK_N, context_len)

    packed = tl.arange(0, BLOCK_M)
    channels = tl.arange(0, BLOCK_D)
    heads = kv_head * GROUP + packed
    is_row = packed < GROUP
    is_place = is_row[:, None] & (channels < HEAD_DIM)[None, :]
    places = heads[:, None] * HEAD_DIM + channels[None, :]
    q = tl.load(q_ptr + start.to(tl.int64) * q_stride + places, mask=is_place, other=0.0)
    positions = tl.full([BLOCK_M], 0, tl.int32) + (context_len - 1)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if HAS_ALIBI:
        slopes = tl.load(slopes_ptr + heads, mask=is_row, other=0.0) * 1.4426950408889634
    table_ptr = tables_ptr + sequence.to(tl.int64) * table_stride
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for key in range(begin, end, BLOCK_N):
        acc, top, total = _attend(
            acc, top, total, q, key, end, kv_head, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, positions, slopes,
            window, scale, softcap, True, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, HAS_WINDOW, HAS_SOFTCAP,
            HAS_ALIBI, HAS_SCALES, PRECISION,
        )  # fmt: skip
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if SPLITS == 1:
        out = out_ptr + start.to(tl.int64) * (KV_HEADS * GROUP * HEAD_DIM) + places
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=is_place)
    else:
        row = (sequence * SPLITS + split).to(tl.int64) * (KV_HEADS * GROUP)
        tl.store(weight_ptr + row + heads, top + tl.log2(total), mask=is_row)
        if begin < end:
            tl.store(partial_ptr + row * HEAD_DIM + places, acc, mask=is_place)


@triton.jit
def _join_kernel(
    partial_ptr, weight_ptr, out_ptr, starts_ptr,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Program (sequence, head): the splits' results, weighted."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    start = tl.load(starts_ptr + sequence)
    if tl.load(starts_ptr + sequence + 1) - start != 1:
        return
    channels = tl.arange(0, BLOCK_D)
    rows = (sequence.to(tl.int64) * SPLITS + tl.arange(0, SPLITS)) * HEADS + head
    weights = tl.load(weight_ptr + rows)
    top = tl.max(weights, 0)
    weights = tl.exp2(weights - tl.where(top == -float("inf"), 0.0, top))
    total = tl.sum(weights, 0)
    is_place = (weights > 0.0)[:, None] & (channels < HEAD_DIM)[None, :]
    parts = tl.load(partial_ptr + rows[:, None] * HEAD_DIM + channels[None, :], mask=is_place, other=0.0)
    out = tl.sum(parts * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    place = out_ptr + (start.to(tl.int64) * HEADS + head) * HEAD_DIM + channels
    tl.store(place, out.to(out_ptr.dtype.element_ty), mask=channels < HEAD_DIM)


class Tiles(NamedTuple):
    """Shape of a kernel's work: keys a tile, rows a tile, warps, pipeline stages."""

    keys: int
    rows: int
    num_warps: int
    num_stages: int


def paged_attention(
    q: Tensor,
    cache: LayerCache,
    batch: Batch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    prefill_tiles: Tiles | None = None,
    decode_tiles: Tiles | None = None,
    splits: int | None = None,
) -> Tensor:
    """See Ops.paged_attention. Sequences with one query and those with more are two launches; padding sequences
    (context_len 0) give zeros. `*tiles` and `splits` are for measuring."""
    group, dim = q.shape[1] // cache.k.shape[2], q.shape[2]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    has_singles, has_others = _kinds(batch)
    factors = (scale * _LOG2E, 0.0) if softcap is None else (scale / softcap, softcap * _LOG2E)
    common: dict[str, Any] = {
        "KV_HEADS": cache.k.shape[2], "HEAD_DIM": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "BLOCK_SIZE": cache.block_size, "HAS_WINDOW": window is not None, "HAS_SOFTCAP": softcap is not None,
        "HAS_ALIBI": alibi_slopes is not None, "HAS_SCALES": cache.k_scale is not None, "GROUP": group,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    stores = (cache.k, cache.v, cache.k_scale, cache.v_scale, batch.block_tables, batch.query_starts,
              batch.context_lens, alibi_slopes)  # fmt: skip
    numbers = (q.stride(0), batch.block_tables.stride(0), window or 0, *factors)
    if has_others:
        tiles = prefill_tiles or _prefill_tiles(group, dim, q.dtype)
        grid = (len(q) // (tiles.rows // group) + len(batch.context_lens), cache.k.shape[2])
        _prefill_kernel[grid](
            q, out, *stores, len(batch.context_lens), *numbers, SKIP_SINGLES=has_singles, BLOCK_M=tiles.rows,
            BLOCK_N=tiles.keys, num_warps=tiles.num_warps, num_stages=tiles.num_stages, **common,
        )  # fmt: skip
    if has_singles:
        tiles = decode_tiles or _decode_tiles(group, dim, q.dtype)
        _decode(q, out, batch, stores, numbers, common, tiles, splits or _num_splits(batch, cache, tiles))
    return out


def _decode(
    q: Tensor, out: Tensor, batch: Batch, stores: Any, numbers: Any, common: dict[str, Any], tiles: Tiles, splits: int
) -> None:
    num, heads, dim = len(batch.context_lens), q.shape[1], q.shape[2]
    weights = partial = out
    if splits > 1:
        partial = torch.empty((num, splits, heads, dim), dtype=torch.float32, device=q.device)
        weights = torch.empty((num, splits, heads), dtype=torch.float32, device=q.device)
    _decode_kernel[(num, common["KV_HEADS"], splits)](
        q, out, partial, weights, *stores, *numbers, BLOCK_M=tiles.rows, BLOCK_N=tiles.keys, SPLITS=splits,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages, **common,
    )  # fmt: skip
    if splits > 1:
        _join_kernel[(num, heads)](
            partial, weights, out, batch.query_starts, HEADS=heads, HEAD_DIM=dim, BLOCK_D=common["BLOCK_D"],
            SPLITS=splits, num_warps=4,
        )  # fmt: skip


def _kinds(batch: Batch) -> tuple[bool, bool]:
    """Whether there are sequences with one query, and with more."""
    if batch.plan is None or batch.max_query_len == 1:
        assert batch.max_query_len == 1, "without the host's plan every sequence has one query"
        return True, False
    found: tuple[bool, bool] | None = batch.memo.get("kinds")
    if found is None:
        found = batch.memo["kinds"] = (bool((np.diff(batch.plan.query_starts) == 1).any()), True)
    return found


def _num_splits(batch: Batch, cache: LayerCache, tiles: Tiles) -> int:
    """A power of two: enough programs for all multiprocessors, at least two tiles each. From padded shapes only."""
    programs = len(batch.context_lens) * cache.k.shape[2]
    longest = batch.block_tables.shape[1] * cache.block_size
    most = min(_MAX_SPLITS, _PROGRAMS // programs, longest // (2 * tiles.keys))
    return 1 if most < 2 else 1 << (most.bit_length() - 1)


def _prefill_tiles(group: int, dim: int, dtype: torch.dtype) -> Tiles:
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:  # products without tensor cores take many registers
        return Tiles(32, max(32, rows), 4, 1) if dim <= 64 else Tiles(16, rows, 8, 1)
    return Tiles(64, max(128, rows), 8, 3) if dim <= 128 else Tiles(32, max(64, rows), 8, 2)


def _decode_tiles(group: int, dim: int, dtype: torch.dtype) -> Tiles:
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return Tiles(16, rows, 4, 2)
    return Tiles(64, rows, 4, 3) if dim <= 128 else Tiles(32, rows, 4, 2)
