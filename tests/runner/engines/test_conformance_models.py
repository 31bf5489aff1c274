"""The conformance suite on the engines that run real weights, with the demo model: GGUF and Hugging Face folder.

Last, the demo model's known answers: the same greedy ids on every engine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from model_cards.resolve import resolve
from runner.engines import llamacpp, native
from runner.engines.base import Engine, EngineOptions, EngineSpec
from runner.types import SamplingParams, TokenRequest
from tests.conformance import CHECKS, Check, EngineCase, run_check
from tests.conftest import LLAMACPP_LIBRARY

PRESETS = Path(__file__).parents[3] / "model_cards" / "presets" / "demo"
KNOWN = json.loads((PRESETS / "conformance.json").read_text())
HONOURS = frozenset({"stop", "min_tokens", "seed", "max_running", "max_queue"})
pytestmark = pytest.mark.usefixtures("engine_libraries")
NEEDS_LLAMACPP = pytest.mark.skipif(LLAMACPP_LIBRARY is None, reason="no llama.cpp library: make engine")
NEEDS_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="no torch")


def _engine(name: str, source: str, **fixed: Any) -> Callable[..., Engine]:
    makers = {"llamacpp": llamacpp.make_engine, "native": native.make_engine}

    def make(**limits: int) -> Engine:
        options = EngineOptions(threads=1, context_length=1024, start_timeout_s=60, **fixed, **limits)
        return makers[name](EngineSpec(name=name, card=resolve(source), options=options))

    return make


def _prompts() -> list[list[int]]:
    """Long enough, and of text that the model knows: known prompts, one after the other."""
    ids = [case["prompt_ids"] + case["greedy_ids"] for case in KNOWN["cases"][:60]]
    return [list(itertools.chain(*ids[start::3]))[:120] for start in range(3)]


def _case(name: str, source: str, mark: pytest.MarkDecorator, **fixed: Any) -> Any:
    case = EngineCase(
        name=name, make=_engine(name, source, **fixed), prompts=_prompts(), long_tokens=400, honours=HONOURS
    )
    return pytest.param(case, marks=[mark], id="-".join([name, source, *map(str, fixed.values())]))


CASES = [_case("llamacpp", "demo", NEEDS_LLAMACPP), _case("native", "demo-hf", NEEDS_TORCH)]
GREEDY_CASES = [
    *CASES,
    _case("native", "demo", NEEDS_TORCH),
    _case("native", "demo-hf", NEEDS_TORCH, dtype="float32"),
    _case("native", "demo-hf", NEEDS_TORCH, quantize="int8"),
    _case("native", "demo-hf", NEEDS_TORCH, quantize="int4"),
    _case("native", "demo-hf", NEEDS_TORCH, kv_cache_dtype="int8"),
    _case("native", "demo-hf", NEEDS_TORCH, kv_cache_dtype="fp8"),
    _case("native", "demo-hf", NEEDS_TORCH, tensor_parallel_size=2),
]


@pytest.fixture
def engine_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was installed before the tests took another home."""
    if LLAMACPP_LIBRARY is not None:
        monkeypatch.setenv("LLMRUN_LLAMACPP_LIB", str(LLAMACPP_LIBRARY))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, case: EngineCase) -> None:
    await run_check(check, case)


@pytest.mark.parametrize("case", GREEDY_CASES)
async def test_known_answers_of_the_demo_model(case: EngineCase) -> None:
    stop_ids = tuple(KNOWN["stop_token_ids"])
    engine = case.make()
    await engine.start()
    try:
        answers = await asyncio.gather(*[_ids(engine, known, stop_ids) for known in KNOWN["cases"]])
    finally:
        await engine.close()
    for known, answer in zip(KNOWN["cases"], answers, strict=True):
        assert answer == [token for token in known["greedy_ids"] if token not in stop_ids], known


async def _ids(engine: Engine, known: dict[str, Any], stop_ids: tuple[int, ...]) -> list[int]:
    request = TokenRequest(
        id=json.dumps(known["prompt_ids"]),
        token_ids=known["prompt_ids"],
        sampling=SamplingParams(temperature=0.0),
        max_tokens=len(known["greedy_ids"]) + 1,
        stop_token_ids=stop_ids,
    )
    ids: list[int] = []
    async with aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            ids += delta.token_ids
    return ids
