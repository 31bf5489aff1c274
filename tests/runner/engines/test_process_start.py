"""Starts of a child process that fail, hang, or are given up: why it failed is said, and nothing is left behind."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import psutil
import pytest

from runner.errors import EngineBusy, EngineDied, EngineStartFailed
from tests.runner.engines.conftest import MakeEngine

BOUND_S = 10.0


@pytest.mark.parametrize(
    ("kind", "reason", "hint"),
    [
        ("Segfaults", "SIGSEGV", "segmentation fault"),
        ("OutOfMemory", "cannot allocate 99 GB", "not enough memory"),
        ("Refuses", "the model has wings", "clip them"),
        ("BrokenModel", "did not start: a shard is missing", ""),
        ("NoSuchClass", "NoSuchClass", ""),
    ],
)
async def test_a_failed_start_says_why(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str, hint: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = make_engine(kind)
    with pytest.raises(EngineStartFailed, match=reason) as caught:
        await engine.start()
    assert hint in caught.value.hint
    assert caught.value.log_tail
    assert not list(tmp_path.iterdir()), "the private folder is left behind"


async def test_the_last_words_of_a_crash_are_in_the_message(make_engine: MakeEngine) -> None:
    with pytest.raises(EngineStartFailed, match="about to read address 0"):
        await make_engine("Segfaults").start()


async def test_a_child_that_is_never_ready_times_out(make_engine: MakeEngine) -> None:
    engine = make_engine("NeverReady", options={"start_timeout_s": 1.0})
    phases: list[tuple[str, float | None]] = []
    engine.on_progress = lambda phase, share: phases.append((phase, share))
    with pytest.raises(EngineStartFailed, match=r"not ready within 1 s \(it was: loading model\)"):
        await engine.start()
    assert phases == [("loading model", 0.25)]


async def test_no_such_interpreter(make_engine: MakeEngine) -> None:
    with pytest.raises(EngineStartFailed, match="cannot be started"):
        await make_engine("Counter", python="/nonexistent/python").start()


async def test_no_folder_for_the_log_names_the_variable_that_moves_it(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path / "home"))
    with pytest.raises(EngineStartFailed, match=r"LLMRUN_HOME names another folder.*: '.*home/state"):
        await make_engine("Counter").start()


async def test_closing_or_cancelling_during_a_start(make_engine: MakeEngine) -> None:
    others = set(psutil.Process().children())  # servers that other tests share
    engine = make_engine("NeverReady")
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.3)
    with pytest.raises(EngineBusy, match="starting"):
        await engine.health()
    async with asyncio.timeout(BOUND_S):
        await engine.close()
        await engine.close()
    with pytest.raises((asyncio.CancelledError, EngineDied)):
        await starting
    other = make_engine("NeverReady")
    starting = asyncio.create_task(other.start())
    await asyncio.sleep(0.3)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    with pytest.raises(EngineDied):
        await other.health()
    async with asyncio.timeout(BOUND_S):
        while set(psutil.Process().children()) - others:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # it is killed, and gone a moment later
