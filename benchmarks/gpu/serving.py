"""256 requests of a Qwen3-0.6B shape, as nano-vllm's bench.py asks them, through ours and transformers' engine."""

from __future__ import annotations

import random
import time
from typing import Any

import torch

from benchmarks.gpu.engine import Engine
from benchmarks.gpu.place import GIB, Place
from benchmarks.gpu.shapes import qwen
from runner.types import SamplingParams, TokenRequest
from tests.runner.engines.native.random_models import drop, random_decoder

BAR = 5.0
PUBLISHED = {
    "nano-vllm": 1434.13, "vllm": 1361.84, "machine": "RTX 4070 Laptop (256 GB/s)", "source": "nano-vllm's README",
}  # fmt: skip
"""Output tokens/s of the same requests; scaled by memory bandwidth in the report."""
_PUBLISHED_BYTES_PER_S = 256e9
_RIVAL_LIMIT_S = 120.0

Work = list[tuple[list[int], int]]
"""(prompt, output length)"""


def make_work(place: Place) -> Work:
    """The requests of nano-vllm's bench.py, seed 0."""
    random.seed(0)
    num, low, high, vocab = (3, 3, 6, 100) if place.is_toy else (256, 100, 1024, 10000)
    prompts = [[random.randint(0, vocab) for _ in range(random.randint(low, high))] for _ in range(num)]
    return [(prompt, random.randint(low, high)) for prompt in prompts]


def ours(place: Place) -> dict[str, Any]:
    """Output tokens/s; compiling and capturing are done before."""
    work = make_work(place)
    context = 128 if place.is_toy else 4096
    model = random_decoder(qwen(place.is_toy), place.dtype, place.device, context, "triton")
    tokens = min(sum(len(prompt) + count + 64 for prompt, count in work), _room(model, place))
    budget = 64 if place.is_toy else 16384
    engine = Engine(model, place, tokens=tokens, context=context, max_running=len(work), budget=budget)
    start = time.perf_counter()
    if not place.is_toy:
        with torch.inference_mode():
            engine.graphs.capture_all(lambda phase, share: None)
        _serve(engine, [(prompt[:70], 3) for prompt, _ in work[:8]], "warm")  # compiles prefill and sampling
    captured_s = time.perf_counter() - start
    engine.spent = dict.fromkeys(engine.spent, 0.0)
    engine.num_steps = engine.num_graphed = 0
    place.synchronize()
    start = time.perf_counter()
    count = _serve(engine, work, "run")
    place.synchronize()
    seconds = time.perf_counter() - start
    assert count == sum(count for _, count in work), "some request was not answered in full"
    result = {
        "output_tokens": count, "seconds": seconds, "tokens_per_s": count / seconds, "warm_up_s": captured_s,
        "kv_tokens": tokens, "host": engine.report(), "preempted": engine.core.stats()["num_preemptions"],
    }  # fmt: skip
    drop(model)
    return result


def _room(model: Any, place: Place) -> int:
    if place.is_toy:
        return 1 << 12
    free, _ = torch.cuda.mem_get_info()
    spec = model.spec
    return int((free - 10 * GIB) / (2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 2))


def _serve(engine: Engine, work: Work, name: str) -> int:
    for index, (prompt, count) in enumerate(work):
        sampling = SamplingParams(temperature=0.6)
        engine.add(TokenRequest(id=f"{name}{index}", token_ids=prompt, max_tokens=count, sampling=sampling))
    return engine.run()


def transformers(place: Place) -> dict[str, Any]:
    """transformers' continuous batching on the same requests; cut off after two minutes, what is done counts."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = dict(qwen(place.is_toy))
    kind = config.pop("model_type")
    torch.manual_seed(0)
    with torch.device(place.device):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **config), dtype=place.dtype, attn_implementation="sdpa"
        ).eval()
    settings = GenerationConfig(do_sample=True, temperature=0.6, top_k=0, eos_token_id=-1, pad_token_id=0,
                                max_new_tokens=1024)  # fmt: skip
    manager = model.init_continuous_batching(generation_config=settings, **_sizes(place))
    manager.start()
    try:
        if not place.is_toy:
            _ask(manager, [(prompt[:70], 8) for prompt, _ in make_work(place)[:8]], 60.0)
        place.synchronize()
        start = time.perf_counter()
        count, is_done = _ask(manager, make_work(place), 20.0 if place.is_toy else _RIVAL_LIMIT_S)
        seconds = time.perf_counter() - start
    finally:
        manager.stop(block=True, timeout=10)
        model.to("meta")
    return {"output_tokens": count, "seconds": seconds, "tokens_per_s": count / seconds, "is_complete": is_done}


def _sizes(place: Place) -> dict[str, Any]:
    """Its own choice on a GPU; on a CPU that would be most of the memory."""
    if not place.is_toy:
        return {}
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    return {"continuous_batching_config": ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)}


def _ask(manager: Any, work: Work, limit_s: float) -> tuple[int, bool]:
    """Tokens that came, of unfinished requests too where they can be seen, and whether all are there."""
    deadline = time.perf_counter() + limit_s
    for prompt, count in work:
        manager.add_request(prompt, max_new_tokens=count)
    got: dict[str, int] = {}
    while len(got) < len(work) and time.perf_counter() < deadline and manager.is_running():
        result = manager.get_result(timeout=1)
        if result is None:
            continue
        if result.error is not None:
            raise RuntimeError(str(result.error))
        if result.is_finished():
            got[result.request_id] = len(result.generated_tokens)
    scheduler = getattr(getattr(manager, "batch_processor", None), "scheduler", None)
    open_states = list(getattr(scheduler, "active_requests", {}).values()) if len(got) < len(work) else []
    unfinished = sum(len(state.generated_tokens) for state in open_states if state.request_id not in got)
    return sum(got.values()) + unfinished, len(got) == len(work)


def compare(place: Place, mine: dict[str, Any], rival: dict[str, Any]) -> dict[str, Any]:
    """The bar, and the published figures scaled by memory bandwidth."""
    ratio = mine["tokens_per_s"] / rival["tokens_per_s"] if rival.get("tokens_per_s") else None
    scale = place.limits["copy_bytes_per_s"] / _PUBLISHED_BYTES_PER_S
    scaled = {f"{name}_scaled": round(PUBLISHED[name] * scale) for name in ("nano-vllm", "vllm")}  # type: ignore[operator]
    return {
        "ratio": ratio,
        "bar": BAR,
        "met": None if ratio is None else ratio >= BAR,
        "published": PUBLISHED,
        **scaled,
    }
