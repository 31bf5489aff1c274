"""Every Triton kernel against plain torch, as a table of cases for the interpreter, a compiler and a GPU.

    python -m tests.runner.engines.native.kernel_cases [NAME ...]      one JSON line a case

Runs on CUDA where there is one, else with TRITON_INTERPRET=1. Knows no pytest, so that benchmarks run it too.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __name__ == "__main__" and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

from runner.engines.native.kernels import activation, linear, moe, norm, rotary, torch_ops
from runner.engines.native.kernels.attention import paged_attention
from runner.engines.native.kernels.ops import HeadNorms, Rotation
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.cache import KVCache, LayerCache
from runner.engines.native.plan import StepPlan

Pair = tuple[Tensor, Tensor]
"""(what the kernel gave, what is right)"""
Case = Callable[["Place"], Iterator[Pair]]


@dataclass(frozen=True)
class Place:
    """Where and in which format a case runs."""

    device: str
    dtype: torch.dtype
    is_checked: bool = True
    """False where kernels are only compiled."""

    @property
    def tolerance(self) -> float:
        """Of both the absolute and the relative difference, for values about 1."""
        return {torch.float32: 2e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}[self.dtype]

    def randn(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """The same numbers everywhere."""
        generator = torch.Generator().manual_seed(seed + sum(shape))
        return torch.randn(shape, generator=generator).to(self.device, dtype or self.dtype)


@dataclass(frozen=True)
class Attend:
    """A step over paged sequences: (queries, context) of each."""

    lens: tuple[tuple[int, int], ...]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    alibi: bool = False
    kv: torch.dtype | None = None
    splits: int | None = None

    def __call__(self, place: Place) -> Iterator[Pair]:
        """Ours, and the reference in float32 on the same numbers."""
        cache = self._cache(place)
        batch = Batch.from_plan(make_plan(self.lens, self.block_size), place.device)
        if all(queries == 1 for queries, _ in self.lens):
            batch = replace(batch, plan=None)  # as in a CUDA graph
        qkv = place.randn(len(batch.positions), self.heads + 3, self.dim)  # a view of a wider row, as the model has
        slopes = torch.arange(1, self.heads + 1, device=place.device) / 16.0 if self.alibi else None
        options: dict[str, Any] = {"scale": self.dim**-0.5, "window": self.window, "softcap": self.softcap}
        q = qkv[:, : self.heads]
        got = paged_attention(q, cache, batch, alibi_slopes=slopes, splits=self.splits, **options)
        if place.is_checked:
            yield got, self._reference(q, cache, place.device, slopes, options)

    def _cache(self, place: Place) -> LayerCache:
        blocks = sum(-(-context // self.block_size) for _, context in self.lens) + 1
        kv = self.kv or place.dtype
        cache = KVCache(1, blocks, self.block_size, self.kv_heads, self.dim, kv, place.device).layers[0]
        keys, values = (place.randn(blocks * self.block_size, self.kv_heads, self.dim, seed=seed) for seed in (1, 2))
        torch_ops.OPS.write_cache(keys, values, cache, torch.arange(len(keys), device=place.device))
        return cache

    def _reference(self, q: Tensor, cache: LayerCache, device: str, slopes: Tensor | None, options: Any) -> Tensor:
        k, v = (
            store.float() * (1.0 if scale is None else scale[..., None])
            for store, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale))
        )
        rows = [row for row, (_, context) in enumerate(self.lens) if context]
        assert all(context for _, context in self.lens[: len(rows)]), "padding comes last"
        batch = Batch.from_plan(make_plan(self.lens[: len(rows)], self.block_size), device)
        num = len(batch.positions)
        want = torch.zeros(q.shape, device=device)
        want[:num] = torch_ops.OPS.paged_attention(
            q[:num].float(), LayerCache(k, v), batch, alibi_slopes=slopes, **options
        )
        return want


def make_plan(lens: tuple[tuple[int, int], ...], block_size: int) -> StepPlan:
    """Blocks in a shuffled order; a context of 0 is a padding row (slot -1)."""
    widths = [-(-context // block_size) for _, context in lens]
    blocks = np.random.default_rng(0).permutation(sum(widths)).astype(np.int32) + 1
    tables = np.zeros((len(lens), max(*widths, 1)), np.int32)
    positions, slots = [], []
    for row, (queries, context) in enumerate(lens):
        tables[row, : widths[row]] = blocks[sum(widths[:row]) :][: widths[row]]
        places = np.arange(context - queries, context) if context else np.array([0])
        positions.append(places)
        known = tables[row, places // block_size] * block_size + places % block_size
        slots.append(known if context else np.array([-1]))
    starts = np.cumsum([0, *(queries for queries, _ in lens)], dtype=np.int32)
    flat = np.concatenate(positions).astype(np.int32)
    return StepPlan(
        token_ids=flat % 7, positions=flat, slots=np.concatenate(slots).astype(np.int32), query_starts=starts,
        context_lens=np.array([context for _, context in lens], np.int32), block_tables=tables,
        sample_rows=starts[1:] - 1, copies=np.zeros((0, 2), np.int32),
    )  # fmt: skip


@dataclass(frozen=True)
class Rope:
    """Norm, turn, write."""

    heads: int = 6
    kv_heads: int = 2
    dim: int = 32
    turned: int | None = 32
    interleaved: bool = False
    normed: bool = False
    kv: torch.dtype | None = None
    cached: bool = True

    def __call__(self, place: Place) -> Iterator[Pair]:
        """Projection and cache after both."""
        slots = torch.tensor([5, 0, 11], device=place.device)
        results = []
        for write in (rotary.rope_write, torch_ops.rope_write):
            qkv = place.randn(3, self.heads + 2 * self.kv_heads, self.dim)
            cache = KVCache(1, 3, 4, self.kv_heads, self.dim, self.kv or place.dtype, place.device).layers[0]
            write(qkv, self.heads, self._norms(place), self._rotation(place), cache if self.cached else None, slots)
            results.append((qkv, cache))
        (qkv, cache), (right_qkv, right) = results
        yield qkv, right_qkv
        for name in ("k", "v"):
            yield _plain(cache, name), _plain(right, name)

    def _norms(self, place: Place) -> HeadNorms | None:
        weights = (1.0 + place.randn(self.dim, seed=seed) / 4 for seed in (3, 4))
        return HeadNorms(*weights, 1e-6) if self.normed else None

    def _rotation(self, place: Place) -> Rotation | None:
        if self.turned is None:
            return None
        angles = place.randn(3, self.turned // 2, seed=5, dtype=torch.float32) * 3
        return Rotation(torch.cat([angles.cos(), angles.sin()], -1), self.interleaved)


def _plain(cache: LayerCache, name: str) -> Tensor:
    """A store in float32; rounding may differ by one step of the format."""
    store, scale = getattr(cache, name), getattr(cache, f"{name}_scale")
    return store.float() if scale is None else store.float() * scale[..., None]


def write_case(place: Place) -> Iterator[Pair]:
    """write_cache; and a padding slot writes nothing."""
    k, v = place.randn(3, 3, 24), place.randn(3, 3, 24, seed=1)
    got, right = (KVCache(1, 2, 4, 3, 24, place.dtype, place.device).layers[0] for _ in range(2))
    rotary.write_cache(k, v, got, torch.tensor([6, -1, 0], device=place.device))
    torch_ops.OPS.write_cache(k[::2], v[::2], right, torch.tensor([6, 0], device=place.device))
    yield got.k, right.k
    yield got.v, right.v


def norm_case(place: Place) -> Iterator[Pair]:
    """Alone, of a view of wider rows, with an addition, with a float32 weight."""
    for size in (64, 1000):
        weight, x = place.randn(size), place.randn(3, size + 8)
        yield norm.rms_norm(x[:, :size], weight, 1e-5), torch_ops.rms_norm(x[:, :size], weight, 1e-5)
        yield norm.rms_norm(x[:, :size], weight.float(), 1e-5), torch_ops.rms_norm(x[:, :size], weight.float(), 1e-5)
        residual, right, delta = x.clone(), x.clone(), place.randn(3, size + 8, seed=1)
        wide = place.randn(size + 8)
        yield norm.add_rms_norm(residual, delta, wide, 1e-5), torch_ops.add_rms_norm(right, delta, wide, 1e-5)
        yield residual, right


def gate_case(place: Place) -> Iterator[Pair]:
    """Every activation."""
    for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu"):
        x = place.randn(2, 2 * 1100)
        yield activation.gate(x, name), torch_ops.gate(x.clone().float(), name)


@dataclass(frozen=True)
class Product:
    """x [rows, k] times a weight [n, k]."""

    rows: int
    n: int = 40
    k: int = 192
    bias: bool = False
    bits: int = 16
    zero: bool = False
    group: int = 64

    def __call__(self, place: Place) -> Iterator[Pair]:
        """Against the unpacked weight in float32."""
        x = place.randn(self.rows, self.k) / self.k**0.5
        bias = place.randn(self.n, seed=1) if self.bias else None
        if self.bits == 16:
            weight = place.randn(self.n, self.k)
            yield linear.linear(x, weight, bias), self._right(x, weight, bias)
        elif self.bits == 8:
            q = (place.randn(self.n, self.k, dtype=torch.float32) * 40).clamp(-127, 127).to(torch.int8)
            scale = place.randn(self.n, seed=2, dtype=torch.float32).abs() / 40
            yield linear.int8_linear(x, q, scale, bias), self._right(x, q.float() * scale[:, None], bias)
        else:
            q = (place.randn(self.n, self.k // 2, dtype=torch.float32) * 64 + 128).clamp(0, 255).to(torch.uint8)
            shape = (self.n, self.k // self.group)
            scale = place.randn(*shape, seed=2, dtype=torch.float32).abs() / 4
            zero = (place.randn(*shape, seed=3) * 2 + 8).round().to(torch.uint8) if self.zero else None
            weight = linear.unpack_int4(q, scale.float(), zero, torch.float32)
            yield linear.int4_linear(x, q, scale, zero, bias), self._right(x, weight, bias)

    def _right(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = x.float() @ weight.float().t()
        return y if bias is None else y + bias.float()


@dataclass(frozen=True)
class Experts:
    """Tokens over experts."""

    tokens: int
    experts: int = 5
    top_k: int = 2

    def __call__(self, place: Place) -> Iterator[Pair]:
        """Against one product an expert."""
        x = place.randn(self.tokens, 48)
        gate_up, down = place.randn(self.experts, 64, 48, seed=1) / 7, place.randn(self.experts, 48, 32, seed=2) / 6
        weights, ids = place.randn(self.tokens, self.experts, seed=3, dtype=torch.float32).softmax(-1).topk(self.top_k)
        got = moe.moe(x, ids, weights, gate_up, down, "silu")
        if place.is_checked:
            yield got, torch_ops.moe(x.float(), ids, weights, gate_up.float(), down.float(), "silu")


MIXED = ((5, 5), (1, 40), (20, 37), (1, 1), (33, 70))
SINGLES = ((1, 1), (1, 100), (1, 33), (1, 64), (1, 0))
CASES: dict[str, Case] = {
    "attend mixed": Attend(MIXED),
    "attend prompts, block of 64": Attend(((70, 70), (3, 90)), block_size=64),
    "attend prompts, block of 256": Attend(((40, 40),), block_size=256),
    "attend head size 80, 7 heads a group": Attend(MIXED, heads=7, kv_heads=1, dim=80),
    "attend no groups": Attend(MIXED, heads=3, kv_heads=3, dim=32),
    "attend window": Attend(MIXED, window=9),
    "attend window as wide as a tile": Attend(((70, 200), (1, 200)), window=64),
    "attend softcap": Attend(MIXED, softcap=1.5),
    "attend alibi": Attend(MIXED, alibi=True),
    "attend int8": Attend(MIXED, kv=torch.int8),
    "attend fp8": Attend(MIXED, kv=torch.float8_e4m3fn),
    "attend float32 cache": Attend(MIXED, kv=torch.float32),
    "attend head size 256": Attend(((20, 37), (1, 50)), heads=2, kv_heads=1, dim=256),
    "attend as Llama-3-8B": Attend(((70, 90), (1, 200)), heads=8, dim=128, block_size=64),
    "attend as Gemma-2": Attend(((20, 90), (1, 90)), heads=4, dim=256, block_size=64, window=40, softcap=50.0),
    "decode": Attend(SINGLES, splits=1),
    "decode split": Attend(SINGLES, splits=4),
    "decode split by itself": Attend(((1, 300), (1, 7)), block_size=64),
    "decode window split": Attend(SINGLES, window=30, splits=4),
    "decode alibi softcap split": Attend(SINGLES, alibi=True, softcap=2.0, splits=2),
    "decode int8 split": Attend(SINGLES, kv=torch.int8, splits=2, block_size=64),
    "decode fp8": Attend(SINGLES, kv=torch.float8_e4m3fn, splits=1),
    "decode 20 heads a group": Attend(SINGLES, heads=20, kv_heads=1, splits=2),
    "rope halves": Rope(),
    "rope interleaved": Rope(interleaved=True),
    "rope partial": Rope(turned=8, dim=20),
    "rope partial, norms": Rope(turned=16, normed=True),
    "rope norms": Rope(normed=True, heads=9, kv_heads=3),
    "rope as Qwen3": Rope(heads=16, kv_heads=8, dim=128, turned=128, normed=True),
    "no rope": Rope(turned=None),
    "no rope, norms": Rope(turned=None, normed=True),
    "rope int8": Rope(kv=torch.int8),
    "rope fp8": Rope(kv=torch.float8_e4m3fn),
    "rope without a cache": Rope(cached=False),
    "write_cache": write_case,
    "rms_norm": norm_case,
    "gate": gate_case,
    "linear 1 row": Product(1, n=45, k=700),
    "linear 1 row, bias": Product(1, bias=True),
    "linear 1 row of 4096": Product(1, n=16, k=4096),
    "int8 1 row of 4096": Product(1, n=16, k=4096, bits=8),
    "int4 1 row of 4096": Product(1, n=16, k=4096, bits=4, group=128, zero=True),
    "int8 1 row": Product(1, n=45, k=1100, bits=8, bias=True),
    "int8 5 rows": Product(5, bits=8, bias=True),
    "int8 70 rows": Product(70, bits=8, bias=True),
    "int4 1 row": Product(1, bits=4),
    "int4 1 row, zeros": Product(1, bits=4, zero=True, bias=True, group=32),
    "int4 5 rows": Product(5, bits=4),
    "int4 5 rows, zeros": Product(5, bits=4, zero=True, bias=True),
    "int4 1 row, group of 192": Product(1, bits=4, group=192),
    "int4 70 rows": Product(70, bits=4, zero=True),
    "moe 1 token": Experts(1),
    "moe 23 tokens": Experts(23),
    "moe 200 tokens": Experts(200, experts=3, top_k=1),
}  # fmt: skip


def run_case(name: str, place: Place) -> str | None:
    """None, or what is wrong. Raises what the kernel raises."""
    for index, (got, right) in enumerate(CASES[name](place)):
        if not place.is_checked:
            continue
        tolerance = place.tolerance * (4 if "int8" in name else 1)
        if name == "rope fp8":  # one step of three bits; triton 3.9's interpreter loses the carry to the exponent too
            tolerance = 0.3 if place.device == "cpu" else 0.13
        gap = (got.float() - right.float()).abs()
        is_close = (gap <= tolerance + tolerance * right.float().abs()).all()
        if got.shape != right.shape or not is_close:
            return f"result {index}: off by {gap.max():.3g}, allowed {tolerance:g}; {got.dtype} {list(got.shape)}"
    return None


def report(names: list[str], place: Place) -> Iterator[dict[str, Any]]:
    """One record a case; an exception is a failure of its case only."""
    for name in names:
        start = time.perf_counter()
        try:
            problem = run_case(name, place)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        dtype = str(place.dtype).removeprefix("torch.")
        yield {"case": name, "dtype": dtype, "problem": problem, "seconds": round(time.perf_counter() - start, 3)}


def main() -> None:
    """All cases, or those named."""
    warnings.simplefilter("ignore")
    has_cuda = torch.cuda.is_available()
    dtypes = (torch.float32, torch.bfloat16, torch.float16) if has_cuda else (torch.float32,)
    for dtype in dtypes:
        for record in report(sys.argv[1:] or list(CASES), Place("cuda" if has_cuda else "cpu", dtype)):
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
