"""`llmrun engines check`: a real engine passes, a wrong one does not, one that does not start says why."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from runner import trial
from runner.cli import main
from runner.engines import ENGINES, environments
from runner.errors import EngineStartFailed
from runner.trial import Verdict, hold_trial
from runner.types import ChatRequest, TextDelta
from tests.conftest import LLAMACPP_LIBRARY


async def verdicts(name: str) -> dict[str, Verdict]:
    return {verdict.name: verdict async for verdict in hold_trial(ENGINES[name])}


@pytest.mark.skipif(LLAMACPP_LIBRARY is None, reason="no llama.cpp library: make engine")
async def test_a_real_engine_passes_every_question(llamacpp_library: Path) -> None:
    found = await verdicts("llamacpp")
    assert list(found) == [
        "start",
        "known answers, alone",
        "known answers, together",
        "length",
        "stop token",
        "early close",
        "too long",
        "close",
    ]
    assert [verdict for verdict in found.values() if not verdict.is_passed] == []
    assert found["known answers, together"].detail.startswith("150 of 150 have the same greedy ids")


async def test_an_engine_with_other_answers_fails() -> None:
    found = await verdicts("echo_core")  # it repeats the prompt
    assert found["start"].is_passed
    assert not found["known answers, alone"].is_passed
    assert "wanted ' Rome.'" in found["known answers, alone"].detail
    assert "150 of 150 are wrong" in found["known answers, together"].detail
    assert found["close"].is_passed


async def test_an_engine_that_hangs_fails_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_BOUND_S", 0.2)
    started = trial.start_service

    async def start(plan: Any) -> Any:
        service, info = await started(plan)

        async def hang(request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
            await trial.asyncio.sleep(3600)
            yield TextDelta()

        service.generate = hang  # type: ignore[method-assign]
        return service, info

    monkeypatch.setattr(trial, "start_service", start)
    found = await verdicts("echo_core")
    assert found["known answers, alone"].detail == "no end after 0 s"
    assert found["close"].is_passed


async def test_an_engine_that_does_not_start_has_one_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(plan: Any) -> Any:
        raise EngineStartFailed("no GPU here")

    monkeypatch.setattr(trial, "start_service", start)
    found = await verdicts("echo_core")
    assert [(verdict.is_passed, verdict.detail) for verdict in found.values()] == [(False, "no GPU here")]


def test_the_command_prints_verdicts_and_fails_with_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(environments.RECIPES, "echo_core", "nowhere:RECIPE")
    usable = environments.EngineStatus(name="echo_core", is_usable=True, detail="x")
    monkeypatch.setattr(environments, "check", lambda name, **_: usable)
    assert main(["engines", "check", "echo_core"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["pass", "start"]
    assert any(line.split()[:3] == ["FAIL", "known", "answers,"] for line in lines)
    assert lines[-1] == "echo_core: 6 failed, 2 passed"
