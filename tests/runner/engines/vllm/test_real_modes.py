"""The real vLLM in its other shapes: headless, several cores, HTTP workers, adapters, embeddings (make test-vllm)."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runner.engines.base import Engine
from runner.engines.process import ProcessEngine
from runner.engines.replicas import Replicas
from runner.errors import EngineDied, LlmrunError, RequestError
from runner.types import EmbedRequest, SamplingParams
from tests.runner.engines.vllm.program import running, seconds_until_gone
from tests.runner.engines.vllm.test_real import BAD, KNOWN, PRESETS, PYTHON, answer, is_right, make, pytestmark

__all__ = ["pytestmark"]


@asynccontextmanager
async def started(**options: Any) -> AsyncIterator[Engine]:
    engine = make(**options)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def test_headless_refuses_what_is_bad_and_sees_the_death_of_its_core() -> None:
    async with started(vllm_mode="headless") as engine:
        assert isinstance(engine, ProcessEngine)
        assert await is_right(engine)
        for name, fields in BAD.items():
            try:
                await answer(engine, **{"token_ids": [5, 6, 7], **fields})
            except LlmrunError as error:
                assert not isinstance(error, EngineDied), (name, error)
            else:
                pytest.fail(f"{name} was served")
        await _check_long_seeded_prompts(engine)
        assert await is_right(engine) and engine.num_restarts == 0
        await _check_death_of_headless(engine)


async def _check_long_seeded_prompts(engine: ProcessEngine) -> None:
    """On a CPU they are refused, as nothing of ours is there to mend what they break; greedy ones are served."""
    prompt, hot = KNOWN["cases"][0]["prompt_ids"] * 20, SamplingParams(temperature=1.0, seed=7)
    with pytest.raises(RequestError, match="--vllm-mode headless on a CPU"):
        await asyncio.gather(*[answer(engine, prompt[:1000], sampling=hot) for _ in range(8)])
    assert await answer(engine, prompt[:1000], sampling=SamplingParams(temperature=0.0, seed=7))


async def _check_death_of_headless(engine: ProcessEngine) -> None:
    import psutil

    assert engine.pid is not None
    family = psutil.Process(engine.pid).children(recursive=True)
    core = max(family, key=lambda one: one.memory_info().rss)

    async def stream() -> float:
        with pytest.raises(EngineDied):
            await answer(engine, [5] * 20, max_tokens=900)
        return time.monotonic()

    tasks = [asyncio.create_task(stream()) for _ in range(32)]
    await asyncio.sleep(0.5)
    core.kill()
    killed_at = time.monotonic()
    engine.restart_eagerly = True
    ends = await asyncio.gather(*tasks)
    assert max(ends) - killed_at < 1.0
    await _until_up(engine)
    assert await is_right(engine) and engine.num_restarts == 1
    assert await seconds_until_gone(family, 1.0) is not None


async def _until_up(engine: ProcessEngine) -> None:
    async with asyncio.timeout(150):
        while not engine.is_up:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_two_cores_one_of_which_dies() -> None:
    async with started(data_parallel_size=2) as engine:
        assert isinstance(engine, Replicas)
        assert all(await asyncio.gather(*[is_right(engine) for _ in range(8)]))
        first, second = engine.engines
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await asyncio.sleep(0.5)
        assert all(await asyncio.gather(*[is_right(engine) for _ in range(8)]))
        await _until_up(first)
        assert (first.num_restarts, second.num_restarts) == (1, 0)
        assert await is_right(first)


async def test_two_http_workers_share_one_core() -> None:
    async with running(str(PYTHON), "--http-workers", "2") as program:
        right = await program.answer()
        assert set(await asyncio.gather(*[program.answer() for _ in range(64)])) == {right}
        core = program.core()
        core.kill()
        async with asyncio.timeout(120):
            while True:
                try:
                    assert await program.answer() == right
                    break
                except (AssertionError, OSError):
                    await asyncio.sleep(0.2)
        assert program.core().pid != core.pid
        assert set(await asyncio.gather(*[program.answer() for _ in range(64)])) == {right}
        family = program.family()
        program.process.kill()
        assert await seconds_until_gone(family, 5.0) is not None


async def test_an_adapter_changes_the_requests_that_name_it_only(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    async with started(adapters=(f"mine={tmp_path}",), dtype="float32") as engine:
        prompt = KNOWN["cases"][0]["prompt_ids"]
        plain = await answer(engine, prompt)
        mine, again = await asyncio.gather(answer(engine, prompt, adapter="mine"), answer(engine, prompt))
        assert again == plain != mine


def make_adapter(folder: Path, *, seed: int = 1, rank: int = 8) -> None:
    """A PEFT folder for the demo model: on every q_proj, large enough to be seen."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    config = json.loads((PRESETS / "hf" / "config.json").read_text())
    dice, weights = torch.Generator().manual_seed(seed), {}
    width, heads = config["hidden_size"], config["num_attention_heads"]
    out = heads * (config.get("head_dim") or width // heads)
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, width, generator=dice)
        weights[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=dice)
    save_file(weights, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": "demo"}))


async def test_embeddings_of_a_model_that_is_told_to_make_them() -> None:
    async with started(extra={"runner": "pooling", "convert": "embed"}) as engine:
        first, second, same = (await engine.embed(EmbedRequest(id="e", inputs=[[5, 6], [9, 10, 11], [5, 6]]))).vectors
        numbers = struct.unpack(f"<{len(first) // 4}f", first)
        assert math.isclose(sum(value * value for value in numbers), 1.0, rel_tol=1e-4)
        assert first == same != second
