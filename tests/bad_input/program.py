"""`python -m runner` as a user meets it: a process with a clean home, and what must be true of every failure.

Owns the environment, the time bound and the search for orphans: a marker in the environment, which every descendant
inherits, finds also those that left the process group.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from runner.engines.llamacpp.library import LIBRARY_VARIABLE
from tests.conftest import LLAMACPP_LIBRARY

ROOT = Path(__file__).resolve().parents[2]
LLMRUN = (sys.executable, "-m", "runner")
MARKER = "BAD_INPUT_TEST"
HANG_S = 90
"""Nothing here takes longer than a few seconds on an idle machine; this only tells a hang from a busy one."""
FAILURE, USAGE = 1, 2


def environment(home: Path) -> dict[str, str]:
    """A clean environment around `home`; the marker is the home's own."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    ours = {
        "HOME": str(home),
        "LLMRUN_HOME": str(home / "llmrun"),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        MARKER: uuid.uuid4().hex,
    }
    library = {LIBRARY_VARIABLE: str(LLAMACPP_LIBRARY)} if LLAMACPP_LIBRARY else {}
    return kept | ours | library


class Outcome:
    """What a command left behind: exit code, stdout and stderr as text."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.out = out.decode("utf-8", "replace")
        self.err = err.decode("utf-8", "replace")

    def failed(self, code: int, *telling: str) -> Outcome:
        """It failed as it should: this code, one `error:` line with all the telling parts, and no answer."""
        assert self.code == code, self
        assert self.out == "", self
        assert self.err.count("error: ") == 1, self
        message = self.err[self.err.index("error: ") :]
        assert [part for part in telling if part not in message] == [], message
        assert len(message) < 1500, message
        return self

    def __repr__(self) -> str:
        return f"exit code {self.code}\nstdout: {self.out[:2000]}\nstderr: {self.err[:4000]}"


class Program:
    """Runs `llmrun` with one home, so that what is found out once (the library works) is known to all runs."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __call__(self, *words: str | Path | bytes, stdin: Any = subprocess.DEVNULL, **options: Any) -> Outcome:
        """Run to the end, in bounded time, with no traceback and no process left behind."""
        env = environment(self._home)
        options = {"cwd": self._home, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        with subprocess.Popen([*LLMRUN, *words], stdin=stdin, env=env, **options) as process:
            try:
                out, err = process.communicate(timeout=HANG_S)
            except BaseException:
                process.kill()
                raise
        check_no_orphan(env)
        outcome = Outcome(process.returncode, out or b"", err or b"")
        assert "Traceback" not in outcome.err + outcome.out, outcome
        assert "bug of llmrun" not in outcome.err, outcome
        return outcome


def check_no_orphan(env: Mapping[str, str]) -> None:
    """Wait until nothing with this environment runs any more; fails if something stays."""
    deadline = time.monotonic() + 20
    while left := _processes_of(env[MARKER]):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def _processes_of(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARKER) == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
