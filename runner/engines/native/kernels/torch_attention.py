"""Paged attention in plain torch: the reference for every kernel, exact in float32, on any device.

The step's sequences are put in groups: all with one query together (decodes, one product), each other one alone
(prefill chunks). Blocks are gathered per group, then torch's attention runs with a mask; groups and masks are made once
a step and shared by all layers (Batch.memo).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runner.engines.native.kernels.torch_quantized import dequantize_kv, quantize_kv
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.cache import LayerCache

_MAX_QUERIES = 512


class Scores(NamedTuple):
    """How a layer turns q k into weights; slopes [heads] float32."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    alibi_slopes: Tensor | None = None


@dataclass(frozen=True)
class _Group:
    """Sequences with the same number of queries, keys padded to the longest."""

    rows: Tensor | slice
    """Rows of the flattened tokens, sequence by sequence."""
    num_sequences: int
    query_len: int
    context_lens: list[int]
    tables: Tensor
    """[sequences, blocks]"""
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    parts: list[_Group] = field(default_factory=list)

    @property
    def key_len(self) -> int:
        return max(self.context_lens)

    def distances(self, device: torch.device) -> Tensor:
        """How far each key lies behind each query, [sequences, queries, keys]; negative ahead of it."""
        lens = torch.tensor(self.context_lens, device=device)[:, None, None]
        queries = torch.arange(-self.query_len, 0, device=device)[None, :, None] + lens
        return queries - torch.arange(self.key_len, device=device)

    def split(self) -> list[_Group]:
        """A long prefill chunk as several, so that masks and scores stay small; later ones see more keys."""
        if not self.parts:
            for start in range(0, self.query_len, _MAX_QUERIES):
                stop = min(start + _MAX_QUERIES, self.query_len)
                seen = self.key_len - self.query_len + stop
                self.parts.append(_Group(slice(start, stop), 1, stop - start, [seen], self.tables))
        return self.parts

    def mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """Which keys each query sees, [sequences, 1, queries, keys]; None for all."""
        if window not in self.masks:
            far = window if window is not None and window < self.key_len else None
            is_full = self.query_len == 1 and far is None and min(self.context_lens) == self.key_len
            self.masks[window] = None if is_full else self._mask(far, device)
        return self.masks[window]

    def _mask(self, window: int | None, device: torch.device) -> Tensor:
        distances = self.distances(device)
        seen = distances >= 0
        return (seen & (distances < window) if window is not None else seen).unsqueeze(1)


def paged_attention(
    q: Tensor,
    cache: LayerCache,
    batch: Batch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """Causal attention of q [tokens, heads, head_dim] over the cached context of each sequence."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    scores = Scores(scale, window, softcap, alibi_slopes)
    for group in _groups(batch, cache.block_size):
        k = _gather(cache.k, cache.k_scale, group, q.dtype)
        v = _gather(cache.v, cache.v_scale, group, q.dtype)
        out[group.rows] = _attend(q[group.rows], k, v, group, scores)
    return out


def plain_attention(q: Tensor, k: Tensor, v: Tensor, batch: Batch, scores: Scores) -> Tensor:
    """The same without a cache: each sequence sees its own tokens of this step only (the memory profile's run)."""
    assert batch.plan is not None
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for start, stop in itertools.pairwise(batch.plan.query_starts.tolist()):
        rows = slice(start, stop)
        group = _Group(rows, 1, stop - start, [stop - start], batch.block_tables)
        out[rows] = _attend(q[rows], k[None, rows], v[None, rows], group, scores)
    return out


def write_cache(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """Put k and v [tokens, kv_heads, head_dim] at their slots, quantised as the cache is."""
    for values, store, scales in ((k, cache.k, cache.k_scale), (v, cache.v, cache.v_scale)):
        if scales is not None:
            values, factor = quantize_kv(values, store.dtype)
            scales.view(-1, scales.shape[-1])[slots] = factor
        store.view(-1, *store.shape[2:])[slots] = values.to(store.dtype)


def _groups(batch: Batch, block_size: int) -> list[_Group]:
    groups: list[_Group] | None = batch.memo.get("groups")
    if groups is None:
        groups = batch.memo["groups"] = _make_groups(batch, block_size)
    return groups


def _make_groups(batch: Batch, block_size: int) -> list[_Group]:
    """Raises AssertionError inside CUDA graphs, where the host knows no lengths."""
    plan = batch.plan
    assert plan is not None, "the torch backend needs the host's plan"
    lens = np.diff(plan.query_starts)
    groups = []
    singles = np.flatnonzero(lens == 1)
    if len(singles):
        rows: Tensor | slice = slice(0, len(singles))
        if len(singles) != len(lens):
            rows = torch.from_numpy(plan.query_starts[singles].astype(np.int64)).to(batch.positions.device)
        groups.append(_group(rows, singles, 1, batch, block_size))
    for index in np.flatnonzero(lens > 1):
        rows = slice(int(plan.query_starts[index]), int(plan.query_starts[index + 1]))
        groups.append(_group(rows, np.array([index]), int(lens[index]), batch, block_size))
    return groups


def _group(rows: Tensor | slice, sequences: np.ndarray, query_len: int, batch: Batch, block_size: int) -> _Group:
    assert batch.plan is not None
    context_lens = batch.plan.context_lens[sequences].tolist()
    width = -(-max(context_lens) // block_size)
    tables = batch.block_tables[torch.from_numpy(sequences).to(batch.block_tables.device), :width]
    return _Group(rows, len(sequences), query_len, context_lens, tables.long())


def _gather(store: Tensor, scales: Tensor | None, group: _Group, dtype: torch.dtype) -> Tensor:
    """Keys or values of a group, [sequences, keys, kv_heads, head_dim]."""
    flat = group.tables.reshape(-1)
    values = store.index_select(0, flat)
    if scales is not None:
        values = dequantize_kv(values, scales.index_select(0, flat), dtype)
    values = values.view(group.num_sequences, -1, *store.shape[2:])
    return values[:, : group.key_len].to(dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, group: _Group, scores: Scores) -> Tensor:
    """[sequences * queries, heads, head_dim]"""
    has_window = scores.window is not None and scores.window < group.key_len
    is_plain = scores.softcap is None and scores.alibi_slopes is None and not has_window
    if is_plain and group.query_len == group.key_len and group.num_sequences == 1:
        q, k, v = (heads.transpose(-3, -2) for heads in (q.unsqueeze(0), k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scores.scale, enable_gqa=True)
        return out[0].transpose(0, 1)
    if group.query_len <= _MAX_QUERIES:
        return _attend_masked(q, k, v, group, scores)
    return torch.cat([
        _attend_masked(q[part.rows], k[:, : part.key_len], v[:, : part.key_len], part, scores)
        for part in group.split()
    ])  # fmt: skip


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, group: _Group, scores: Scores) -> Tensor:
    """The heads that share K and V become further queries of one head."""
    num, queries, heads, kv_heads, dim = group.num_sequences, group.query_len, q.shape[1], k.shape[2], q.shape[2]
    shared = heads // kv_heads
    q = q.reshape(num, queries, kv_heads, shared, dim).permute(0, 2, 3, 1, 4).reshape(num, kv_heads, -1, dim)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    mask = group.mask(scores.window, q.device)
    if mask is not None:
        mask = mask.repeat(1, 1, shared, 1)
    if scores.alibi_slopes is not None:
        mask = _alibi(scores.alibi_slopes.view(kv_heads, shared), group, mask, q)
    if scores.softcap is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scores.scale)
    else:
        out = _capped(q @ k.transpose(2, 3) * scores.scale, scores.softcap, mask).to(v.dtype) @ v
    out = out.view(num, kv_heads, shared, queries, dim).permute(0, 3, 1, 2, 4)
    return out.reshape(num * queries, heads, dim)


def _capped(products: Tensor, softcap: float, mask: Tensor | None) -> Tensor:
    """Weights of scores bent by softcap * tanh(score / softcap) (Gemma 2), float32."""
    capped = torch.tanh(products / softcap).float() * softcap
    if mask is not None:
        capped = capped.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else capped + mask
    return capped.softmax(-1)


def _alibi(slopes: Tensor, group: _Group, mask: Tensor | None, q: Tensor) -> Tensor:
    """Scores fall by slope * distance (arXiv 2108.12409), [sequences, kv_heads, shared * queries, keys]."""
    distances = group.distances(q.device).to(torch.float32)
    bias = -(slopes[None, :, :, None, None] * distances[:, None, None])
    bias = bias.view(group.num_sequences, slopes.shape[0], -1, group.key_len)
    return (bias if mask is None else bias.masked_fill(~mask, -torch.inf)).to(q.dtype)
