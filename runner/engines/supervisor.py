"""Supervisor: starts, logs and ends the processes of one engine. Knows processes, not what is said to them.

A child leads its own session and process group; its input is /dev/null, its output a log file that is kept small.
Ending is polite first and then kills the whole group and every descendant, within a bound. What happens when this
launcher is killed is guard.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from runner import paths
from runner.engines.hints import describe_exit

LOG_LIMIT_BYTES = 16 * 1024 * 1024
_LOG_KEPT_BYTES = 1024 * 1024
_LOG_FILES_KEPT = 20
_TAIL_BYTES = 16 * 1024
_POLL_S = 0.02
RESTART_WINDOW_S = 600.0


class RestartBudget:
    """At most `max_restarts` within ten minutes."""

    def __init__(self, max_restarts: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_restarts = max_restarts
        self._clock = clock
        self._restarts: deque[float] = deque()

    def take(self) -> bool:
        """Whether one more restart is allowed now; counts it."""
        now = self._clock()
        while self._restarts and now - self._restarts[0] > RESTART_WINDOW_S:
            self._restarts.popleft()
        if len(self._restarts) >= self.max_restarts:
            return False
        self._restarts.append(now)
        return True


class Supervisor:
    """Makes the child processes of one engine; `name` is for log files and messages."""

    def __init__(self, name: str) -> None:
        self.name = name

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
    ) -> ChildProcess:
        """Start a process. `env` is added to ours. Raises OSError.

        Call it in the thread that lives as long as the child may: PR_SET_PDEATHSIG counts the thread, not the process.
        """
        try:
            log_path = _new_log(self.name)
        except OSError as error:
            said = f"{error.strerror}: its log is written here; LLMRUN_HOME names another folder for what llmrun keeps"
            raise OSError(error.errno, said, error.filename) from error
        with log_path.open("ab", buffering=0) as log:
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        return ChildProcess(self.name, popen, log_path)


class ChildProcess:
    """One running (or ended) process and its group."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._popen = popen
        self._descendants: list[psutil.Process] = []
        self._is_killed = False

    @property
    def pid(self) -> int:
        """Process id; also the id of its group."""
        return self._popen.pid

    def poll(self) -> int | None:
        """The exit code (negative: the signal), or None while it runs."""
        return self._popen.poll()

    async def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (code := self._popen.poll()) is None and time.monotonic() < deadline:  # noqa: ASYNC110 (no event exists)
            await asyncio.sleep(_POLL_S)
        return code

    async def stop(self, polite_s: float = 5.0, term_s: float = 2.0) -> int | None:
        """End it: wait `polite_s` (it has been asked already), SIGTERM, wait `term_s`, kill the group. Never raises."""
        try:
            self._descendants = _descendants(self.pid)
            if await self.wait(polite_s) is None:
                self._popen.terminate()
                await self.wait(term_s)
        finally:
            self.kill()
        return await self.wait(2.0)

    def kill(self) -> None:
        """SIGKILL to the group and to descendants that left it. Safe at any time; does not wait."""
        if self._is_killed:
            return  # its process id may be somebody else's by now
        self._is_killed = True
        descendants = [*self._descendants, *_descendants(self.pid)]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in descendants:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._popen.poll()

    def describe_end(self) -> str:
        """How it ended, in words."""
        return describe_exit(self.poll())

    def log_tail(self, num_lines: int = 20) -> str:
        """The last lines of its log, without terminal codes."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
        return "\n".join([line for line in lines if line][-num_lines:])

    def trim_log(self) -> None:
        """Keep the log below its limit. The child appends (O_APPEND), so its next line lands at the new end."""
        with contextlib.suppress(OSError):
            if self.log_path.stat().st_size <= LOG_LIMIT_BYTES:
                return
            with self.log_path.open("r+b") as log:
                log.seek(-_LOG_KEPT_BYTES, os.SEEK_END)
                kept = log.read()
                log.truncate(0)
            with self.log_path.open("ab") as log:
                log.write(b"[llmrun: the log was too long; older lines are gone]\n" + kept)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def _new_log(name: str) -> Path:
    """A fresh file; only the newest few are kept."""
    folder = paths.log_dir()
    folder.mkdir(parents=True, exist_ok=True)
    old = sorted(folder.glob("*.log"), key=_modified)
    for path in old[: max(0, len(old) - _LOG_FILES_KEPT + 1)]:
        with contextlib.suppress(OSError):
            path.unlink()
    stem = re.sub(r"[^a-z0-9_-]", "_", name.lower())
    handle, new = tempfile.mkstemp(".log", f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-", folder)
    os.close(handle)
    return Path(new)


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
