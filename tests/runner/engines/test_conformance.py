"""The conformance suite on the engines that need no library and no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_cards.card import ModelCard
from runner.engines import echo, mocker, python_file
from runner.engines.base import Engine, EngineOptions, EngineSpec
from tests.conformance import CHECKS, Check, EngineCase, run_check

CARD = ModelCard(name="toy", source="toy", vocab_size=512, context_length=4096, eos_token_ids=(2,))
PROMPTS = [list(range(start, start + 300)) for start in (10, 60, 200)]
PYTOK = Path(__file__).parents[3] / "examples" / "pytok_echo.py"
FAST = {"decode_base_us": 1000.0, "prefill_us_per_token": 1.0}


def _spec(name: str, argument: str = "", extra: dict[str, Any] | None = None, **limits: int) -> EngineSpec:
    options = EngineOptions(extra=extra or {}, start_timeout_s=30, **limits)  # type: ignore[arg-type]
    return EngineSpec(name=name, card=CARD, argument=argument, options=options)


def _echo(**limits: int) -> Engine:
    return echo.make_core(_spec("echo_core", **limits))


def _mocker(**limits: int) -> Engine:
    return mocker.make_engine(_spec("mocker", extra=FAST, **limits))


def _pytok(**limits: int) -> Engine:
    return python_file.make_pytok(_spec("pytok", str(PYTOK), **limits))


CASES = [
    EngineCase(name="echo_core", make=_echo, prompts=PROMPTS, honours=frozenset({"stop", "min_tokens"})),
    EngineCase(
        name="mocker",
        make=_mocker,
        prompts=PROMPTS,
        honours=frozenset({"stop", "min_tokens", "max_running", "seed"}),
    ),
    EngineCase(name="pytok", make=_pytok, prompts=PROMPTS, honours=frozenset({"stop"})),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, case: EngineCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_TOKEN_ECHO_DELAY_MS", "1")
    await run_check(check, case)
