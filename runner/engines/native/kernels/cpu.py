"""The "cpu" backend: ops.py's table over our C++ kernels, for models that CpuDecoder does not take as a whole.

Where the library cannot be built OPS is torch's. Layouts that a kernel does not know go to the reference.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from runner.engines.native.kernels import cpu_library as c
from runner.engines.native.kernels import torch_ops
from runner.engines.native.kernels.cpu_library import Library, open_library
from runner.engines.native.kernels.ops import HeadNorms, Ops, Rotation
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.cache import LayerCache

TYPES = {torch.float32: c.F32, torch.bfloat16: c.BF16, torch.float16: c.F16, torch.int8: c.I8,
         torch.float8_e4m3fn: c.FP8}  # fmt: skip


@functools.cache
def library() -> Library | None:
    """The kernels with as many threads as torch has when they are first used."""
    return open_library(torch.get_num_threads())


def pointer(tensor: Tensor | None) -> int | None:
    """Of a tensor's first element."""
    return None if tensor is None else tensor.data_ptr()


def cache_of(cache: LayerCache) -> c.Cache:
    """A layer's cache as the kernels see it."""
    k = cache.k
    return c.Cache(k.data_ptr(), cache.v.data_ptr(), pointer(cache.k_scale), pointer(cache.v_scale), TYPES[k.dtype],
                   k.shape[1], k.shape[2], k.shape[3])  # fmt: skip


class CpuOps:
    """ops.py's functions over one Library."""

    def __init__(self, kernels: Library) -> None:
        self._c = kernels

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops.rms_norm."""
        return self._norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops.add_rms_norm."""
        if not (x.is_contiguous() and delta.is_contiguous() and delta.dtype == x.dtype):
            return torch_ops.add_rms_norm(x, delta, weight, eps)
        return self._norm(x, delta, weight, eps)

    def _norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out, weight, size = torch.empty_like(x), weight.float(), x.shape[-1]
        self._c.rms_norm(self._c.pool, x.data_ptr(), pointer(delta), weight.data_ptr(), eps, x.numel() // size, size,
                         TYPES[x.dtype], out.data_ptr())  # fmt: skip
        return out

    def gate(self, gate_up: Tensor, activation: str) -> Tensor:
        """See Ops.gate."""
        gate_up = gate_up.contiguous()
        rows, size = gate_up.shape[0], gate_up.shape[-1] // 2
        out = gate_up.new_empty(rows, size)
        self._c.gate(self._c.pool, gate_up.data_ptr(), rows, size, c.ACTIVATIONS.index(activation),
                     TYPES[out.dtype], out.data_ptr())  # fmt: skip
        return out

    def rope_write(
        self,
        qkv: Tensor,
        num_heads: int,
        norms: HeadNorms | None,
        rotation: Rotation | None,
        cache: LayerCache | None,
        slots: Tensor,
    ) -> None:
        """See Ops.rope_write."""
        if cache is None or not _has_rows(qkv):
            torch_ops.rope_write(qkv, num_heads, norms, rotation, cache, slots)
            return
        weights = (None, None) if norms is None else (norms.q_weight.float(), norms.k_weight.float())
        factors = None if rotation is None else rotation.cos_sin
        rope_dim = 0 if factors is None else factors.shape[1]
        rope = c.Rope(pointer(weights[0]), pointer(weights[1]), norms.eps if norms else 0.0, rope_dim,
                      rotation is not None and rotation.is_interleaved)  # fmt: skip
        store = cache_of(cache)
        self._c.rope_write(self._c.pool, qkv.data_ptr(), TYPES[qkv.dtype], qkv.stride(0), len(qkv), num_heads,
                           ctypes.byref(rope), pointer(factors), ctypes.byref(store), slots.data_ptr())  # fmt: skip

    def write_cache(self, k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
        """See Ops.write_cache."""
        if not (_has_rows(k) and _has_rows(v) and k.stride(0) == v.stride(0) and k.dtype == v.dtype):
            k, v = k.contiguous(), v.to(k.dtype).contiguous()
        self._c.write_cache(self._c.pool, k.data_ptr(), v.data_ptr(), TYPES[k.dtype], k.stride(0), len(k),
                            ctypes.byref(cache_of(cache)), slots.data_ptr())  # fmt: skip

    def paged_attention(
        self,
        q: Tensor,
        cache: LayerCache,
        batch: Batch,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        """See Ops.paged_attention."""
        q = q if _has_rows(q) else q.contiguous()
        out = torch.empty(q.shape, dtype=q.dtype)
        slopes = None if alibi_slopes is None else alibi_slopes.float().contiguous()
        kind = TYPES[q.dtype]
        call = c.Attend(q.data_ptr(), out.data_ptr(), q.stride(0), out.stride(0), pointer(slopes), scale,
                        softcap or 0.0, kind, kind, q.shape[1], window or 0)  # fmt: skip
        tables = batch.block_tables
        sequences = c.Sequences(batch.query_starts.data_ptr(), batch.context_lens.data_ptr(), tables.data_ptr(),
                                len(tables), tables.shape[1])  # fmt: skip
        self._c.attention(self._c.pool, ctypes.byref(call), ctypes.byref(cache_of(cache)), ctypes.byref(sequences))
        return out


def _has_rows(heads: Tensor) -> bool:
    """Whether [tokens, heads, dim] is contiguous but for the tokens' stride."""
    return heads.stride(2) == 1 and heads.stride(1) == heads.shape[2]


def make_ops() -> Ops:
    """The table; torch's where there is no library."""
    kernels = library()
    if kernels is None:
        return torch_ops.OPS
    ours: Any = CpuOps(kernels)
    names = ("rms_norm", "add_rms_norm", "gate", "rope_write", "write_cache", "paged_attention")
    return dataclasses.replace(torch_ops.OPS, **{name: getattr(ours, name) for name in names})


def __getattr__(name: str) -> Any:
    """OPS, made when it is asked for: that compiles the kernels where they never were."""
    if name == "OPS":
        return make_ops()
    raise AttributeError(name)
