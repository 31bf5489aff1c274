"""The lines of an 8B model: decode at batch 1 against the bandwidth, prefill against the matrix rate, int8 decode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.engine import Engine
from benchmarks.gpu.kernels import profile
from benchmarks.gpu.place import Place
from benchmarks.gpu.shapes import llama
from runner.engines.native.kernels.ops import Ops, use_ops
from runner.engines.native.layers.attention import Attention
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.decoder import Decoder
from runner.engines.native.plan import StepPlan
from runner.types import SamplingParams, TokenRequest
from tests.runner.engines.native.random_models import random_decoder

DECODE_BAR, PREFILL_BAR, INT8_BAR = 0.85, 0.65, 1.6


def make_model(place: Place) -> Decoder:
    """Llama-3-8B's shape."""
    return random_decoder(llama(place.is_toy), place.dtype, place.device, _context(place), "triton")


def _context(place: Place) -> int:
    return 128 if place.is_toy else 8192 + 256


def _lengths(place: Place) -> tuple[int, int]:
    """Tokens of the prompt, and of the answer that are timed."""
    return (9, 2) if place.is_toy else (1024, 200)


def step_bytes(model: Decoder, context: int) -> int:
    """What one decode step must read: all weights but the embedding's other rows, and K and V of the context."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if not model.spec.tied_head:
        weights -= sum(parameter.nbytes for parameter in model.embed.parameters())
    spec = model.spec
    return weights + 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * context * model.dtype.itemsize


def decode(model: Decoder, place: Place) -> dict[str, Any]:
    """Batch 1 through core, graph and sampler, greedy, after a prompt of 1,024 tokens; and the parts alone."""
    prompt, count = _lengths(place)
    engine = Engine(model, place, tokens=prompt + count + 128, context=_context(place), max_running=1, budget=8192)
    step_s = _decode_s(engine, prompt, count)
    floor_s = step_bytes(model, prompt + count // 2) / place.limits["copy_bytes_per_s"]
    graph_s = _graph_s(engine, place, prompt)
    result = {
        "tokens_per_s": 1 / step_s, "ms_per_token": 1e3 * step_s, "floor_ms": 1e3 * floor_s,
        "share_of_copy_bandwidth": floor_s / step_s, "bar": DECODE_BAR, "met": floor_s / step_s >= DECODE_BAR,
        "graph_and_logits_ms": 1e3 * graph_s, "share_of_read_bandwidth":
        floor_s / step_s * place.limits["copy_bytes_per_s"] / place.limits["read_bytes_per_s"], "host": engine.report(),
    }  # fmt: skip
    result["profile"] = profile(lambda: _run_once(engine, prompt), place)
    result["with_cublas_instead_of_gemv_ms"] = 1e3 * _with_cublas(model, engine, place, prompt)
    release(model)
    return result


def release(model: Decoder) -> None:
    """Unbind the KV cache."""
    for attention in model.attentions():
        attention.cache = None


def _decode_s(engine: Engine, prompt: int, count: int) -> float:
    """Seconds a token, the prompt and the first tokens (captures, compiles) not counted."""
    import time

    ids = np.random.default_rng(0).integers(0, engine.model.spec.vocab_size, prompt).tolist()
    request = TokenRequest(id="one", token_ids=ids, max_tokens=count + 10, sampling=SamplingParams(temperature=0.0))
    engine.add(request)
    for _ in range(1 if engine.place.is_toy else 5):
        engine.step()
    engine.place.synchronize()
    start, done = time.perf_counter(), 0
    while engine.core.has_work() and done < count:
        done += engine.step()
    engine.place.synchronize()
    seconds = (time.perf_counter() - start) / max(1, done)
    engine.core.cancel("one")
    return seconds


def _graph_s(engine: Engine, place: Place, context: int) -> float:
    """Replay and head alone, without core and sampler."""
    return place.seconds(lambda: _run_once(engine, context))


@torch.inference_mode()
def _run_once(engine: Engine, context: int) -> torch.Tensor:
    return engine.model.logits(engine.graphs.run(_decode_plan(context)))


def _with_cublas(model: Decoder, engine: Engine, place: Place, context: int) -> float:
    """The same where torch multiplies, in a graph of its own."""
    import dataclasses

    from runner.engines.native.kernels.torch_ops import OPS as TORCH
    from runner.engines.native.kernels.triton_ops import OPS

    def swap(ops: Ops) -> None:
        use_ops(model, ops)
        engine.graphs._replays.clear()

    swap(dataclasses.replace(OPS, linear=TORCH.linear))
    try:
        return _graph_s(engine, place, context)
    finally:
        swap(OPS)


def _decode_plan(context: int) -> StepPlan:
    """One sequence that owns the first blocks."""
    one = np.ones(1, np.int32)
    width = -(-context // 64)
    return StepPlan(
        token_ids=one, positions=one * (context - 1), slots=one * (context - 1),
        query_starts=np.array([0, 1], np.int32), context_lens=one * context,
        block_tables=np.arange(width, dtype=np.int32)[None], sample_rows=one * 0, copies=np.zeros((0, 2), np.int32),
    )  # fmt: skip


def prefill(model: Decoder, place: Place) -> dict[str, Any]:
    """One prompt of 8,192 tokens in one step, and the last token's logits."""
    length = 40 if place.is_toy else 8192
    engine = Engine(model, place, tokens=length, context=_context(place), max_running=1, budget=length)
    spec = model.spec
    rows = np.arange(length, dtype=np.int32)
    plan = StepPlan(
        token_ids=rows % spec.vocab_size, positions=rows, slots=rows, query_starts=np.array([0, length], np.int32),
        context_lens=np.array([length], np.int32), block_tables=np.arange(-(-length // 64), dtype=np.int32)[None],
        sample_rows=np.array([length - 1], np.int32), copies=np.zeros((0, 2), np.int32),
    )  # fmt: skip
    batch = Batch.from_plan(plan, place.device)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return model.logits(model(batch)[-1:])

    seconds = place.seconds(run, repeats=3, warm_ups=2)
    weights = sum(p.numel() for name, p in model.named_parameters() if name.startswith("layers.") and p.dim() == 2)
    profiled = profile(run, place)
    attention = 2 * spec.num_layers * spec.num_heads * spec.head_dim * length * (length + 1)
    rate = (2 * weights * length + attention) / seconds
    release(model)
    del engine
    return {
        "seconds": seconds, "tokens_per_s": length / seconds, "tflops": rate / 1e12,
        "attention_share_of_flops": attention / (2 * weights * length + attention),
        "share_of_matmul_rate": rate / place.limits["matmul_flops_per_s"], "bar": PREFILL_BAR,
        "met": rate / place.limits["matmul_flops_per_s"] >= PREFILL_BAR, "profile": profiled,
    }  # fmt: skip


def quantize_model(model: Decoder, kind: str) -> None:
    """In place, as --quantize does at load."""
    from runner.engines.native.quantize import Quantizer

    quantizer = Quantizer(kind)  # type: ignore[arg-type]
    with torch.inference_mode():
        for path, module in list(model.named_modules()):
            better = quantizer(path, module) if path and not isinstance(module, Attention) else None
            if better is not None:
                _put(model, path, better)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def int8(model: Decoder, place: Place, bf16_ms: float) -> dict[str, Any]:
    """Decode at batch 1 with int8 weights; `model` is changed for good."""
    from runner.engines.native.kernels.triton_ops import OPS

    quantize_model(model, "int8")
    use_ops(model, OPS)
    place.empty()
    prompt, count = _lengths(place)
    engine = Engine(model, place, tokens=prompt + count + 128, context=_context(place), max_running=1, budget=8192)
    step_s = _decode_s(engine, prompt, count)
    floor_s = step_bytes(model, prompt) / place.limits["copy_bytes_per_s"]
    result = {
        "ms_per_token": 1e3 * step_s, "bf16_ms_per_token": bf16_ms, "speedup": bf16_ms / (1e3 * step_s),
        "bar": INT8_BAR, "met": bf16_ms / (1e3 * step_s) >= INT8_BAR, "share_of_copy_bandwidth": floor_s / step_s,
        "graph_and_logits_ms": 1e3 * _graph_s(engine, place, prompt),
        "profile": profile(lambda: _run_once(engine, prompt), place),
    }  # fmt: skip
    release(model)
    return result
