"""Starting and ending: what is closed when, exit codes, signals, and messages for failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from model_cards.card import ModelCard
from runner import console, launch, registry
from runner.catalog import Catalog
from runner.engines.base import EngineSpec
from runner.errors import EngineFailed, EngineStartFailed, UsageError
from runner.frontends.base import FrontendSpec
from runner.options import RunOptions
from runner.plan import Plan
from tests.runner.frontends.text_fakes import ScriptedService

CLOSED: list[str] = []


class Service(ScriptedService):
    """Notes when it is closed."""

    async def close(self) -> None:
        CLOSED.append(self.card.name)


class BadStart(Service):
    async def start(self) -> Any:
        raise EngineStartFailed("no memory", log_tail="line 1\nline 2", hint="buy some")


class BadClose(Service):
    async def close(self) -> None:
        raise EngineFailed("cannot stop")


class Asks:
    """A frontend that asks once and returns 7."""

    def __init__(self, spec: FrontendSpec) -> None:
        self.spec = spec

    async def run(self, catalog: Catalog) -> int:
        answer: AsyncGenerator[Any, None] = catalog.default().generate(None)  # type: ignore[arg-type]
        async for _ in answer:
            pass
        return 7


class Refuses:
    """A frontend that cannot be made."""

    def __init__(self, spec: FrontendSpec) -> None:
        raise UsageError("no such file")


def make_plan(monkeypatch: pytest.MonkeyPatch, service: Any, frontend: Any, *, verbose: int = 0) -> Plan:
    monkeypatch.setattr(launch, "FRONTENDS", {"fake": "fake:frontend"})
    monkeypatch.setattr(registry, "load", lambda name: frontend if name == "fake:frontend" else lambda spec: service)
    CLOSED.clear()
    options = RunOptions(verbose=verbose)
    return Plan(
        engine=EngineSpec(name="fake", card=ModelCard(name="fake", source="")),
        factory="fake:engine",
        level="text",
        frontend=FrontendSpec(name="fake", options=options),
        options=options,
        why={},
        sources={},
    )


def scripted(cls: type[Service] = Service) -> Service:
    return cls(make=lambda request: ["x"])


class Empty(Service):
    async def generate(self, request: Any) -> AsyncGenerator[Any, None]:
        return
        yield


def test_the_frontends_exit_code_and_the_engine_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.run(make_plan(monkeypatch, scripted(Empty), Asks)) == 7
    assert CLOSED == ["fake"]


def test_a_failed_start_closes_and_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineStartFailed, match="no memory"):
        launch.run(make_plan(monkeypatch, scripted(BadStart), Asks))
    assert CLOSED == ["fake"]


def test_a_frontend_that_refuses_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no such file"):
        launch.run(make_plan(monkeypatch, scripted(), Refuses))
    assert CLOSED == ["fake"]


def test_a_failing_close_is_told_and_hides_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Raises(Asks):
        async def run(self, catalog: Catalog) -> int:
            raise UsageError("the first error")

    with pytest.raises(UsageError, match="the first error"):
        launch.run(make_plan(monkeypatch, scripted(BadClose), Raises))
    assert "cannot stop" in capsys.readouterr().err


def test_an_engine_that_cannot_be_imported_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(monkeypatch, scripted(), Asks)

    def load(name: str) -> Any:
        raise ImportError("no module named llama")

    monkeypatch.setattr(registry, "load", load)
    with pytest.raises(EngineStartFailed, match="out=fake cannot be loaded: no module named llama") as caught:
        launch.make_service(plan)
    assert "llmrun engines" in caught.value.hint


def test_verbose_says_what_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    launch.run(make_plan(monkeypatch, scripted(Empty), Asks, verbose=1))
    assert "scripted 1: context 2,048" in capsys.readouterr().err


def test_a_failed_start_is_reported_with_log_and_fix(capsys: pytest.CaptureFixture[str]) -> None:
    code = console.report(EngineStartFailed("no memory", log_tail="line 1\nline 2", hint="buy some"))
    text = capsys.readouterr().err
    assert code == 1
    assert text.index("line 2") < text.index("error: no memory") < text.index("fix: buy some")


@pytest.mark.parametrize("kind", ["runner.errors.EngineStartFailed", "model_cards.errors.ModelFileError"])
def test_our_own_traceback_in_the_log_is_not_repeated(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    error = EngineStartFailed("no library", log_tail=f"Traceback …\n{kind}: no library")
    console.report(error)
    assert "Traceback" not in capsys.readouterr().err
    console.report(error, verbose=1)
    assert "Traceback" in capsys.readouterr().err


def _start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "LLMRUN_TOKEN_ECHO_DELAY_MS": "20"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "runner", *words], text=True, env=environment, **pipes)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=str,
)
def test_a_signal_ends_an_answer_with_its_code(number: signal.Signals, code: int) -> None:
    process = _start("out=echo_full", "word " * 1000)
    assert process.stdout is not None and process.stdin is not None
    process.stdin.close()
    assert process.stdout.read(4) == "word"
    process.send_signal(number)
    assert process.wait(30) == code
    assert process.stderr is not None and "Traceback" not in process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_nohup_keeps_its_meaning(tmp_path: Path) -> None:
    script = f"trap '' HUP; exec {sys.executable} -m runner out=echo_full '{'word ' * 30}'"
    environment = {**os.environ, "LLMRUN_TOKEN_ECHO_DELAY_MS": "10"}
    out = tmp_path / "out"
    with out.open("w") as file:
        process = subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=file, env=environment)
    until = time.monotonic() + 30
    while "word" not in out.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert out.read_text().split() == ["word"] * 30
