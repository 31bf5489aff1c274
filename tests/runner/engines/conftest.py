"""Engines in real child processes, for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from model_cards.card import ModelCard
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.process import ProcessEngine
from tests.runner.engines.node_program import Node

ROOT = Path(__file__).parents[3]
MakeEngine = Callable[..., ProcessEngine]


@pytest.fixture
async def make_engine() -> AsyncIterator[MakeEngine]:
    """make_engine("Counter", extra={...}, options={...}, **ProcessEngine's) -> not started; closed at the end."""
    engines: list[ProcessEngine] = []

    def make(kind: str, extra: dict[str, Any] | None = None, **more: Any) -> ProcessEngine:
        limits = {"start_timeout_s": 30.0, **more.pop("options", {})}
        spec = EngineSpec(
            name=kind.lower(), card=ModelCard(name="m", source="m"), options=EngineOptions(extra=extra or {}, **limits)
        )
        module = f"tests.runner.engines.fault_engines:{kind}"
        engines.append(ProcessEngine(spec, module, env={"PYTHONPATH": str(ROOT)}, **more))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Nodes of a test, killed at its end."""
    started: list[Node] = []
    yield started
    for node in started:
        node.end()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made
