"""The kernels alone: right or not, how near to the bandwidth, and which tile shapes would be faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.place import Place
from benchmarks.gpu.shapes import LLAMA_3_8B
from runner.engines.native.kernels import linear
from runner.engines.native.kernels.attention import Tiles, paged_attention
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.cache import KVCache
from tests.runner.engines.native import kernel_cases

_TOY_CASES = ("attend mixed", "decode split", "rope norms", "rms_norm", "int8 1 row", "moe 1 token")
GEMV = tuple(
    linear.Shape(rows, columns, warps, stages)
    for rows, columns, warps, stages in (
        (8, 512, 4, 3), (8, 512, 4, 4), (4, 1024, 4, 3), (16, 512, 8, 3), (8, 1024, 8, 3), (4, 512, 2, 4),
        (8, 512, 4, 1),
    )
)  # fmt: skip
INT8_GEMV = tuple(
    linear.Shape(rows, columns, warps, stages)
    for rows, columns, warps, stages in (
        (8, 1024, 4, 3), (8, 512, 4, 4), (4, 1024, 4, 4), (4, 2048, 4, 3), (16, 512, 4, 3), (8, 1024, 8, 3),
        (8, 1024, 4, 1),
    )
)  # fmt: skip
PREFILL = (Tiles(64, 128, 8, 3), Tiles(128, 128, 8, 2), Tiles(64, 128, 8, 2), Tiles(64, 64, 4, 3), Tiles(32, 128, 4, 3))
DECODE = (Tiles(64, 16, 4, 3), Tiles(64, 16, 4, 4), Tiles(128, 16, 4, 3), Tiles(32, 16, 4, 4), Tiles(64, 16, 2, 3))


def check(place: Place) -> dict[str, Any]:
    """Every case against torch, in the format that is measured."""
    names = list(_TOY_CASES if place.is_toy else kernel_cases.CASES)
    records = list(kernel_cases.report(names, kernel_cases.Place(place.device, place.dtype)))
    failed = {record["case"]: record["problem"] for record in records if record["problem"] is not None}
    return {"num_cases": len(records), "failed": failed, "met": not failed}


def products(place: Place) -> dict[str, Any]:
    """Microseconds and share of the copy bandwidth of one row times the four weights of an 8B layer, by shape."""
    hidden, inner = (64, 128) if place.is_toy else (4096, LLAMA_3_8B["intermediate_size"])
    sizes = {"qkv": (hidden * 3 // 2, hidden), "out": (hidden, hidden), "gate_up": (2 * inner, hidden),
             "down": (hidden, inner)}  # fmt: skip
    return {
        name: _product(place, n, k) for name, (n, k) in (list(sizes.items())[:1] if place.is_toy else sizes.items())
    }


def _product(place: Place, n: int, k: int) -> dict[str, Any]:
    """Several weights in turn, more than the L2 cache holds."""
    copies = 1 if place.is_toy else max(2, 200_000_000 // (n * k))
    dense = [torch.randn(n, k, device=place.device).to(place.dtype) for _ in range(copies)]
    narrow = [torch.zeros(n, k, dtype=torch.int8, device=place.device) for _ in range(2 * copies)]
    scale = torch.ones(n, device=place.device)
    result: dict[str, Any] = {}
    for rows in (1, 4):
        x = torch.randn(rows, k, device=place.device).to(place.dtype)
        result[f"cublas {rows} rows"] = _rate(place, x, dense, torch.nn.functional.linear)
        result[f"int8 {rows} rows"] = _rate(place, x, narrow, lambda x, w: linear.int8_linear(x, w, scale))
    x = torch.randn(1, k, device=place.device).to(place.dtype)
    shapes = (GEMV[:1], INT8_GEMV[:1]) if place.is_toy else (GEMV, INT8_GEMV)
    for shape in shapes[0]:
        result[f"gemv {tuple(shape)}"] = _rate(place, x, dense, lambda x, w, s=shape: linear.linear(x, w, None, s))
    for shape in shapes[1]:
        call = lambda x, w, s=shape: linear.int8_linear(x, w, scale, None, s)  # noqa: E731
        result[f"int8 gemv {tuple(shape)}"] = _rate(place, x, narrow, call)
    return result


def _rate(place: Place, x: Tensor, weights: list[Tensor], multiply: Callable[..., Tensor]) -> dict[str, float] | str:
    """One product; a shape that cannot be run is told, not raised."""

    def run() -> Tensor:
        for weight in weights:
            out = multiply(x, weight)
        return out

    try:
        seconds = place.seconds(place.replay(run), repeats=5) / len(weights)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    share = weights[0].nbytes / seconds / place.limits["copy_bytes_per_s"]
    return {"us": round(1e6 * seconds, 2), "share": round(share, 3)}


def attention(place: Place) -> dict[str, Any]:
    """Llama-3-8B's attention of one layer: a prompt of 8k by tiles, decodes by tiles and splits."""
    heads, kv_heads, dim = (4, 2, 16) if place.is_toy else (32, 8, 128)
    length = 40 if place.is_toy else 8192
    result: dict[str, Any] = {"prefill_tflops": {}, "decode": {}}
    flops = 2 * heads * dim * length * (length + 1)
    for tiles in PREFILL[:1] if place.is_toy else PREFILL:
        seconds = _attend_s(place, ((length, length),), heads, kv_heads, dim, {"prefill_tiles": tiles})
        good = isinstance(seconds, float)
        result["prefill_tflops"][str(tuple(tiles))] = flops / seconds / 1e12 if good else seconds
    for batch, context in ((1, 40),) if place.is_toy else ((1, 1024), (1, 8192), (16, 2048), (256, 1024)):
        result["decode"][f"{batch} x {context}"] = dict(_decodes(place, batch, context, heads, kv_heads, dim))
    return result


def _decodes(place: Place, batch: int, context: int, heads: int, kv_heads: int, dim: int) -> Iterator[tuple[str, Any]]:
    num_bytes = 2 * batch * context * kv_heads * dim * place.dtype.itemsize
    options: list[dict[str, Any]] = [{}, *({"decode_tiles": tiles} for tiles in DECODE)]
    options += [{"splits": splits} for splits in (1, 4, 16, 32, 64) if batch * splits <= 512]
    for option in options[:2] if place.is_toy else options:
        seconds = _attend_s(place, ((1, context),) * batch, heads, kv_heads, dim, option)
        label = ", ".join(f"{key} {value if isinstance(value, int) else tuple(value)}" for key, value in option.items())
        if isinstance(seconds, float):
            share = num_bytes / seconds / place.limits["copy_bytes_per_s"]
            yield label or "default", {"us": round(1e6 * seconds, 2), "share": round(share, 3)}
        else:
            yield label, seconds


def _attend_s(
    place: Place, lens: tuple[tuple[int, int], ...], heads: int, kv_heads: int, dim: int, option: dict[str, Any]
) -> float | str:
    try:
        plan = kernel_cases.make_plan(lens, 64)
        batch = Batch.from_plan(plan, place.device)
        num_blocks = int(plan.block_tables.max()) + 1
        cache = KVCache(1, num_blocks, 64, kv_heads, dim, place.dtype, place.device).layers[0]
        q = torch.randn(len(batch.positions), heads, dim, device=place.device).to(place.dtype)
        run = place.replay(lambda: paged_attention(q, cache, batch, scale=dim**-0.5, **option))
        return place.seconds(run, repeats=10)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def profile(run: Callable[[], Any], place: Place, rows: int = 16) -> list[dict[str, Any]]:
    """Kernels of three calls of `run` by their time on the device, microseconds a call."""
    if place.is_toy:
        run()
        return []
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    run()
    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            run()
        place.synchronize()
    events = [event for event in profiler.key_averages() if getattr(event, "self_device_time_total", 0) > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return [
        {"kernel": event.key[:80], "calls": event.count / 3, "us": round(event.self_device_time_total / 3, 1)}
        for event in events[:rows]
    ]
