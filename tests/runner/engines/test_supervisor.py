"""Supervisor: logs, hints, restarts, and that ending ends everything."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from runner import paths
from runner.engines import supervisor
from runner.engines.hints import describe_exit, likely_fix
from runner.engines.supervisor import ChildProcess, RestartBudget, Supervisor

STUBBORN = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


async def started(code: str) -> ChildProcess:
    """A Python child that has printed `up`."""
    child = Supervisor("Test Engine").spawn([sys.executable, "-c", code])
    deadline = time.monotonic() + 10
    while "up" not in child.log_tail() and child.poll() is None and time.monotonic() < deadline:
        await child.wait(0.02)
    return child


async def test_a_stubborn_child_is_killed_within_the_bound() -> None:
    child = await started(STUBBORN)
    began = time.monotonic()
    assert await child.stop(polite_s=0.1, term_s=0.2) == -signal.SIGKILL
    assert time.monotonic() - began < 5
    assert "SIGKILL" in child.describe_end()
    child.kill()  # safe again


async def test_descendants_that_left_the_group_are_ended_too() -> None:
    inner = "import time; time.sleep(60)"
    code = (
        "import subprocess,sys,time\n"
        f"far = subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True)\n"
        "print(far.pid, 'up', flush=True)\ntime.sleep(60)"
    )
    child = await started(code)
    far = psutil.Process(int(child.log_tail().split()[0]))
    await child.stop(polite_s=0.0, term_s=1.0)
    gone, alive = psutil.wait_procs([far], timeout=5)
    assert gone
    assert not alive


async def test_its_input_is_empty_and_it_leads_its_group() -> None:
    child = await started("import os,sys; print(repr(sys.stdin.read()), os.getpgrp() == os.getpid(), 'up')")
    assert await child.wait(5) == 0
    assert child.log_tail() == "'' True up"
    assert child.log_path.parent == paths.log_dir()


async def test_the_log_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_LIMIT_BYTES", 10_000)
    monkeypatch.setattr(supervisor, "_LOG_KEPT_BYTES", 1_000)
    child = await started("for i in range(5000): print('line', i)\nprint('up')")
    await child.wait(5)
    child.trim_log()
    assert child.log_path.stat().st_size < 1_200
    assert child.log_tail().endswith("line 4999\nup")
    assert "older lines are gone" in child.log_path.read_text()


async def test_only_the_newest_logs_are_kept() -> None:
    for _ in range(supervisor._LOG_FILES_KEPT + 5):
        supervisor._new_log("x")
    assert len(list(Path(paths.log_dir()).glob("*.log"))) == supervisor._LOG_FILES_KEPT


async def test_terminal_codes_and_progress_lines_are_cleaned() -> None:
    child = await started(r"print('\x1b[31mred\x1b[0m\nload 1%\rload 100%\n\nup')")
    await child.wait(5)
    assert child.log_tail(3) == "red\nload 100%\nup"


def test_restarts_within_ten_minutes_are_counted() -> None:
    now = [0.0]
    budget = RestartBudget(2, clock=lambda: now[0])
    assert [budget.take(), budget.take(), budget.take()] == [True, True, False]
    now[0] = 601.0
    assert budget.take()
    assert not RestartBudget(0).take()


@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        ("CUDA error: out of memory", 1, "not enough memory"),
        ("ImportError: libnuma.so.1: cannot open shared object file", 1, "shared library"),
        ("ModuleNotFoundError: No module named 'torch'", 1, "install torch"),
        ("OSError: [Errno 98] Address already in use", 1, "port"),
        ("[Errno 2] No such file or directory: 'x'", 1, "check the path"),
        ("", -signal.SIGILL, "another CPU"),
        ("", -signal.SIGSEGV, "segmentation fault"),
        ("", -signal.SIGKILL, "ran out of memory"),
        ("", 3, ""),
    ],
)
def test_the_likely_fix(text: str, code: int, hint: str) -> None:
    assert hint in likely_fix(text, code)
    assert bool(hint) == bool(likely_fix(text, code))


def test_exits_in_words() -> None:
    assert describe_exit(3) == "it exited with code 3"
    assert describe_exit(-11) == "it was killed by signal 11 (SIGSEGV)"
