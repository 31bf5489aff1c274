"""The real SGLang for tests: engines that are made once for many checks, since a start takes half a minute."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

from model_cards.resolve import resolve
from runner.engines import sglang
from runner.engines.base import Engine, EngineOptions, EngineSpec
from runner.engines.process import ProcessEngine
from runner.engines.sglang.environment import ENVIRONMENT
from runner.types import SamplingParams, TokenDelta, TokenRequest

PYTHON = ENVIRONMENT.find()
PRESETS = Path(__file__).parents[4] / "model_cards" / "presets" / "demo"
KNOWN = json.loads((PRESETS / "conformance.json").read_text())
START_S = 300.0


def make(**limits: Any) -> ProcessEngine:
    """An engine on the demo model, not started."""
    limits = {"context_length": 1024, "threads": 1, "engine_python": PYTHON, "start_timeout_s": START_S, **limits}
    engine = sglang.make_engine(EngineSpec(name="sglang", card=resolve("demo-hf"), options=EngineOptions(**limits)))
    assert isinstance(engine, ProcessEngine)
    return engine


def prompts() -> list[list[int]]:
    """Long enough, and of text that the model knows."""
    ids = [case["prompt_ids"] + case["greedy_ids"] for case in KNOWN["cases"][:60]]
    return [list(itertools.chain(*ids[start::3]))[:120] for start in range(3)]


async def deltas_of(engine: Engine, token_ids: list[int], **fields: Any) -> list[TokenDelta]:
    """A greedy answer of eight tokens unless `fields` says else."""
    fields = {"sampling": SamplingParams(temperature=0.0), "max_tokens": 8, **fields}
    deltas: list[TokenDelta] = []
    async with asyncio.timeout(60), aclosing(engine.generate(TokenRequest(id="t", token_ids=token_ids, **fields))) as s:
        async for delta in s:
            deltas.append(delta)
    return deltas


async def answer(engine: Engine, token_ids: list[int], **fields: Any) -> list[int]:
    """Its ids."""
    return [token for delta in await deltas_of(engine, token_ids, **fields) for token in delta.token_ids]


async def is_right(engine: Engine, known: dict[str, Any] = KNOWN["cases"][0]) -> bool:
    """Whether the demo model answers as everywhere."""
    stop_ids = tuple(KNOWN["stop_token_ids"])
    ids = await answer(engine, known["prompt_ids"], max_tokens=len(known["greedy_ids"]) + 1, stop_token_ids=stop_ids)
    return ids == [token for token in known["greedy_ids"] if token not in stop_ids]
