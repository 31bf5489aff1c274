"""The real mistral.rs for tests: engines on the demo model."""

from __future__ import annotations

import itertools
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

from model_cards.resolve import resolve
from model_cards.tokenizer import load_tokenizer
from runner.engines import mistralrs
from runner.engines.base import Engine, EngineOptions, EngineSpec
from runner.engines.mistralrs.environment import ENVIRONMENT
from runner.engines.process import ProcessEngine
from runner.types import SamplingParams, TokenDelta, TokenRequest

PYTHON = ENVIRONMENT.find()
PRESETS = Path(__file__).parents[4] / "model_cards" / "presets" / "demo"
KNOWN = json.loads((PRESETS / "conformance.json").read_text())


def make(model: str = "demo-hf", **limits: Any) -> ProcessEngine:
    """An engine on the demo model, not started."""
    limits = {"context_length": 1024, "threads": 1, "engine_python": PYTHON, "start_timeout_s": 60, **limits}
    engine = mistralrs.make_engine(EngineSpec(name="mistralrs", card=resolve(model), options=EngineOptions(**limits)))
    assert isinstance(engine, ProcessEngine)
    return engine


def prompts() -> list[list[int]]:
    """Long enough, of text that the model knows, and as the tokenizer itself would write them."""
    tokenizer = load_tokenizer(resolve("demo-hf"))
    texts = [tokenizer.decode(case["prompt_ids"] + case["greedy_ids"]) + " " for case in KNOWN["cases"][:60]]
    return [tokenizer.encode("".join(itertools.islice(texts, start, None, 3)))[:120] for start in range(3)]


async def deltas_of(engine: Engine, token_ids: list[int], **fields: Any) -> list[TokenDelta]:
    """A greedy answer of eight tokens unless `fields` says else."""
    fields = {"sampling": SamplingParams(temperature=0.0), "max_tokens": 8, **fields}
    deltas: list[TokenDelta] = []
    async with aclosing(engine.generate(TokenRequest(id="t", token_ids=token_ids, **fields))) as stream:
        async for delta in stream:
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
