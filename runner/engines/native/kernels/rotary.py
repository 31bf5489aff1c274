"""Head norms, rotary positions and the write of K and V to the cache, in one Triton kernel over the projection.

A negative slot is padding (CUDA graphs): nothing is written for it.

    program (token, tile)     | q heads | q heads | k heads + v heads |      a tile is BLOCK_H heads
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from runner.engines.native.kernels.ops import HeadNorms, Rotation
from runner.engines.native.layers.cache import LayerCache

_HEADS = 8
"""Heads a tile."""


@triton.jit
def _scale_of(values, IS_INT8: tl.constexpr):
    """[H, n] -> the largest of each row over the largest number of the format."""
    return tl.maximum(tl.max(tl.abs(values), 1), 1e-12) / (127.0 if IS_INT8 else 448.0)


@triton.jit
def _encode(values, scale, KIND: tl.constexpr):
    """Float32 [H, n] as the cache keeps them; KIND is plain, int8 or fp8."""
    if KIND == "plain":
        return values
    elif KIND == "int8":
        # adding and taking away 1.5 * 2^23 rounds to the nearest even
        return ((values / scale[:, None] + 12582912.0) - 12582912.0).to(tl.int8)
    else:
        return tl.minimum(tl.maximum(values / scale[:, None], -448.0), 448.0).to(tl.float8e4nv)


@triton.jit
def _write_heads(
    in_ptr, store_ptr, scale_ptr, slot, heads, is_head, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Copy rows of `in_ptr` (one token's heads) to a slot of the cache."""
    channels = tl.arange(0, BLOCK_D)
    places = heads[:, None] * HEAD_DIM + channels[None, :]
    is_place = is_head[:, None] & (channels < HEAD_DIM)[None, :]
    values = tl.load(in_ptr + places, mask=is_place, other=0.0).to(tl.float32)
    scale = _scale_of(values, KIND == "int8")
    if KIND != "plain":
        tl.store(scale_ptr + slot * HEADS + heads, scale, mask=is_head)
    encoded = _encode(values, scale, KIND)
    tl.store(store_ptr + slot * (HEADS * HEAD_DIM) + places, encoded.to(store_ptr.dtype.element_ty), mask=is_place)


@triton.jit
def _factor(left, right, rest, HEAD_DIM: tl.constexpr, HAS_REST: tl.constexpr, eps):
    """1 / rms of each head whose channels are in three parts."""
    squares = tl.sum(left * left, 1) + tl.sum(right * right, 1)
    if HAS_REST:
        squares += tl.sum(rest * rest, 1)
    return tl.rsqrt(squares / HEAD_DIM + eps)[:, None]


@triton.jit
def _turn_heads(
    x_ptr, norm_ptr, cos_sin_ptr, heads, is_head, eps,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Norm and turn heads [H, HEAD_DIM] in place. HALF pairs turn; HALF 0 is norm only."""
    ROTATED: tl.constexpr = 2 * HALF
    pairs = tl.arange(0, BLOCK_HALF)
    is_pair = is_head[:, None] & (pairs < HALF)[None, :]
    if INTERLEAVED:
        lefts = 2 * pairs
        rights = 2 * pairs + 1
    else:
        lefts = pairs
        rights = pairs + HALF
    others = ROTATED + tl.arange(0, BLOCK_REST)
    is_other = is_head[:, None] & (others < HEAD_DIM)[None, :]
    base = heads[:, None] * HEAD_DIM
    left = tl.load(x_ptr + base + lefts[None, :], mask=is_pair, other=0.0).to(tl.float32)
    right = tl.load(x_ptr + base + rights[None, :], mask=is_pair, other=0.0).to(tl.float32)
    if HAS_NORM:
        rest = tl.load(x_ptr + base + others[None, :], mask=is_other, other=0.0).to(tl.float32)
        factor = _factor(left, right, rest, HEAD_DIM, ROTATED < HEAD_DIM, eps)
        # rounded as the norm's own result would be
        kind: tl.constexpr = x_ptr.dtype.element_ty
        left_weight = tl.load(norm_ptr + lefts, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
        right_weight = tl.load(norm_ptr + rights, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
        left = (left * factor * left_weight).to(kind).to(tl.float32)
        right = (right * factor * right_weight).to(kind).to(tl.float32)
        if ROTATED < HEAD_DIM:
            weight = tl.load(norm_ptr + others, mask=others < HEAD_DIM, other=0.0).to(tl.float32)[None, :]
            tl.store(x_ptr + base + others[None, :], (rest * factor * weight).to(kind), mask=is_other)
    if HALF > 0:
        cos = tl.load(cos_sin_ptr + pairs, mask=pairs < HALF, other=0.0)[None, :]
        sin = tl.load(cos_sin_ptr + HALF + pairs, mask=pairs < HALF, other=0.0)[None, :]
        turned = left * cos - right * sin
        right = right * cos + left * sin
        left = turned
        tl.store(x_ptr + base + lefts[None, :], left.to(x_ptr.dtype.element_ty), mask=is_pair)
        tl.store(x_ptr + base + rights[None, :], right.to(x_ptr.dtype.element_ty), mask=is_pair)


@triton.jit
def _rope_write_kernel(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_sin_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, slots_ptr, token_stride,
    cos_sin_stride, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_CACHE: tl.constexpr, KIND: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    tile = tl.program_id(1)
    Q_TILES: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    row_ptr = qkv_ptr + token.to(tl.int64) * token_stride
    cos_sin_ptr += token.to(tl.int64) * cos_sin_stride
    if tile < Q_TILES:
        heads = tile * BLOCK_H + tl.arange(0, BLOCK_H)
        if HAS_NORM or HALF > 0:
            _turn_heads(row_ptr, q_norm_ptr, cos_sin_ptr, heads, heads < HEADS, eps, HEAD_DIM, HALF, INTERLEAVED,
                        HAS_NORM, BLOCK_HALF, BLOCK_REST)  # fmt: skip
    else:
        heads = (tile - Q_TILES) * BLOCK_H + tl.arange(0, BLOCK_H)
        is_head = heads < KV_HEADS
        keys_ptr = row_ptr + HEADS * HEAD_DIM
        if HAS_NORM or HALF > 0:
            _turn_heads(keys_ptr, k_norm_ptr, cos_sin_ptr, heads, is_head, eps, HEAD_DIM, HALF, INTERLEAVED, HAS_NORM,
                        BLOCK_HALF, BLOCK_REST)  # fmt: skip
        if HAS_CACHE:
            slot = tl.load(slots_ptr + token).to(tl.int64)
            if slot >= 0:
                tl.debug_barrier()  # K is read back by other threads than wrote it
                _write_heads(keys_ptr, k_ptr, k_scale_ptr, slot, heads, is_head, KV_HEADS, HEAD_DIM, BLOCK_D, KIND)
                _write_heads(keys_ptr + KV_HEADS * HEAD_DIM, v_ptr, v_scale_ptr, slot, heads, is_head, KV_HEADS,
                             HEAD_DIM, BLOCK_D, KIND)  # fmt: skip


@triton.jit
def _write_kernel(
    key_ptr, value_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, slots_ptr, key_stride, value_stride,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, KIND: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot >= 0:
        keys_ptr = key_ptr + token.to(tl.int64) * key_stride
        values_ptr = value_ptr + token.to(tl.int64) * value_stride
        is_head = heads < KV_HEADS
        _write_heads(keys_ptr, k_ptr, k_scale_ptr, slot, heads, is_head, KV_HEADS, HEAD_DIM, BLOCK_D, KIND)
        _write_heads(values_ptr, v_ptr, v_scale_ptr, slot, heads, is_head, KV_HEADS, HEAD_DIM, BLOCK_D, KIND)


def rope_write(
    qkv: Tensor,
    num_heads: int,
    norms: HeadNorms | None,
    rotation: Rotation | None,
    cache: LayerCache | None,
    slots: Tensor,
) -> None:
    """See Ops.rope_write; qkv [tokens, heads + 2 kv_heads, head_dim], contiguous within a token."""
    num_tokens, all_heads, dim = qkv.shape
    kv_heads = (all_heads - num_heads) // 2
    half = 0 if rotation is None else rotation.cos_sin.shape[-1] // 2
    block_h = min(_HEADS, triton.next_power_of_2(max(num_heads, kv_heads)))
    tiles = triton.cdiv(num_heads, block_h) + triton.cdiv(kv_heads, block_h)
    cos_sin = qkv if rotation is None else rotation.cos_sin
    _rope_write_kernel[(num_tokens, tiles)](
        qkv, *((qkv, qkv) if norms is None else norms[:2]), cos_sin, *_stores(cache), slots, qkv.stride(0),
        0 if rotation is None else cos_sin.stride(0), 0.0 if norms is None else norms.eps,
        HEADS=num_heads, KV_HEADS=kv_heads, HEAD_DIM=dim, HALF=half,
        INTERLEAVED=rotation is not None and rotation.is_interleaved, HAS_NORM=norms is not None,
        HAS_CACHE=cache is not None, KIND=_kind(cache), BLOCK_H=block_h, BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_HALF=triton.next_power_of_2(max(1, half)), BLOCK_REST=triton.next_power_of_2(max(1, dim - 2 * half)),
        num_warps=4,
    )  # fmt: skip


def write_cache(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """See Ops.write_cache; contiguous within a token."""
    num_tokens, kv_heads, dim = k.shape
    block_h = min(_HEADS, triton.next_power_of_2(kv_heads))
    _write_kernel[(num_tokens, triton.cdiv(kv_heads, block_h))](
        k, v, *_stores(cache), slots, k.stride(0), v.stride(0), KV_HEADS=kv_heads, HEAD_DIM=dim, KIND=_kind(cache),
        BLOCK_H=block_h, BLOCK_D=triton.next_power_of_2(dim), num_warps=4,
    )  # fmt: skip


def _stores(cache: LayerCache | None) -> tuple[Any, ...]:
    return (None,) * 4 if cache is None else (cache.k, cache.v, cache.k_scale, cache.v_scale)


def _kind(cache: LayerCache | None) -> str:
    """How values are encoded."""
    if cache is None or cache.k_scale is None:
        return "plain"
    return "int8" if cache.k.dtype == torch.int8 else "fp8"
