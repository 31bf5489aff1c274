"""The conformance suite on the child's side of out=sglang, with a stand-in for sglang."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.conformance import Check, EngineCase
from tests.runner.engines.sglang.sharing import LIMITED, SHARED, Engines
from tests.runner.engines.sglang.stand_in import make

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="no torch"),
    pytest.mark.asyncio(loop_scope="module"),
]
CASE = EngineCase(
    name="sglang (stand-in)",
    make=make,
    prompts=[list(range(10, 45)), list(range(200, 240)), list(range(500, 560))],
    long_tokens=400,
    honours=frozenset({"stop", "min_tokens", "seed", "max_running", "max_queue"}),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines() -> AsyncIterator[Engines]:
    made = Engines(make)
    yield made
    await made.close()


@pytest.mark.parametrize("check", LIMITED + SHARED, ids=lambda check: check.__name__)
async def test_conformance(check: Check, engines: Engines) -> None:
    await engines.run(check, CASE)
