"""Two ways to a child: start one and own it (Spawner), or join one that another process of this launcher owns (Joiner).

Owns the command line, the environment and the private folder of a child. What to do when it dies is process.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import runner
from runner.engines import frames
from runner.engines.base import EngineSpec
from runner.engines.block_log import BlockEvent
from runner.engines.failed_start import failed_start
from runner.engines.frames import Failed, Shape, Start
from runner.engines.hints import likely_fix
from runner.engines.link import Link
from runner.engines.supervisor import ChildProcess, Supervisor
from runner.errors import EngineDied, EngineFailed, EngineStartFailed
from runner.types import EngineInfo

ProgressCallback = Callable[[str, float | None], None]
BlocksCallback = Callable[[list[BlockEvent]], None]
_RETRY_S = 0.05
_REAP_S = 2.0
_SOCKET_PATH_LIMIT = 100
"""sun_path holds 108 bytes on Linux, 104 on macOS."""


class Connection:
    """A link that is ready, the engine's own words, and the process where it is ours."""

    def __init__(self, link: Link, info: EngineInfo, process: ChildProcess | None) -> None:
        self.link = link
        self.info = info
        self.process = process


class Connector(Protocol):
    """How a ProcessEngine gets its connection, at first and after each death."""

    @property
    def socket_path(self) -> str | None:
        """Where the child listens for other processes."""

    async def connect(self, on_lost: Callable[[Link, str], None], on_progress: ProgressCallback | None) -> Connection:
        """Ready when it returns. `on_lost` is called once if it ends later. Cleans up after itself when it raises
        EngineStartFailed (or EngineDied, for a Joiner) or is cancelled."""

    def tidy(self) -> None:
        """Remove files; safe twice."""


class _Waiter:
    """Turns what comes during a start into one awaitable, and later ends of the link into a call."""

    def __init__(self, on_lost: Callable[[Link, str], None], on_progress: ProgressCallback | None) -> None:
        self.outcome: asyncio.Future[EngineInfo | Failed] = asyncio.get_running_loop().create_future()
        self.phase = "starting"
        self.link = Link(self._on_message, self._lost)
        self._on_lost = on_lost
        self._on_progress = on_progress
        self.on_blocks: BlocksCallback | None = None

    def _on_message(self, kind: int, payload: Any) -> None:
        if kind == frames.BLOCKS:
            if self.on_blocks is not None:
                self.on_blocks(payload)
        elif kind == frames.PROGRESS:
            self.phase = payload.phase
            if self._on_progress is not None:
                self._on_progress(payload.phase, payload.share)
        elif not self.outcome.done():
            self.outcome.set_result(payload)
        elif kind == frames.FAILED:
            self.link.fail(payload.reason, EngineFailed)

    def _lost(self, link: Link, why: str) -> None:
        if not self.outcome.done():
            self.outcome.set_result(Failed(""))
        else:
            self._on_lost(link, why)


class Spawner:
    """Starts `python -m runner.engines.child` and speaks to it over an inherited socket."""

    def __init__(self, spec: EngineSpec, child: str, shape: Shape, python: str, env: Mapping[str, str] | None) -> None:
        self._start = Start(child, shape, spec)
        self._spec = spec
        self._python = python
        self._env = dict(env or {})
        self._supervisor = Supervisor(spec.name)
        self._folder: Path | None = None
        self._waiter: _Waiter | None = None
        self._on_blocks: BlocksCallback | None = None

    @property
    def socket_path(self) -> str | None:
        """Where other processes may connect; the same after a restart. None before the first start."""
        return None if self._folder is None else str(self._folder / "engine.sock")

    async def connect(self, on_lost: Callable[[Link, str], None], on_progress: ProgressCallback | None) -> Connection:
        """See Connector."""
        waiter = self._waiter = _Waiter(on_lost, on_progress)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = self._spawn(theirs.fileno())
            except OSError as error:
                ours.close()
                self.tidy()
                raise self._not_started(error) from error
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: waiter.link, sock=ours)
            waiter.link.send(frames.START, self._start)
            return await self._ready(waiter, process)
        except BaseException:
            process.kill()
            waiter.link.close()
            await process.wait(_REAP_S)
            self.tidy()  # the next start makes the same folder again
            raise

    def watch_blocks(self, on_blocks: BlocksCallback) -> None:
        """Have it called with what happens to the prefix cache, of this child and those after it: each begins with a
        `cleared`. An engine that does not know its blocks says nothing."""
        self._on_blocks = on_blocks
        if self._waiter is not None and self._waiter.outcome.done():
            self._watch_blocks(self._waiter)

    def _watch_blocks(self, waiter: _Waiter) -> None:
        if self._on_blocks is not None:
            waiter.on_blocks = self._on_blocks
            waiter.link.send(frames.WATCH_BLOCKS, None)

    async def _ready(self, waiter: _Waiter, process: ChildProcess) -> Connection:
        timeout_s = self._spec.options.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await waiter.outcome
        except TimeoutError:
            outcome = Failed(
                f"it was not ready within {timeout_s:g} s (it was: {waiter.phase})",
                "give it more time with --start-timeout-s, or read its log",
            )
        if isinstance(outcome, EngineInfo):
            self._watch_blocks(waiter)
            return Connection(waiter.link, outcome, process)
        code = await process.wait(1.0) if not outcome.reason else None
        raise failed_start(process, reason=outcome.reason, hint=outcome.hint, code=code)

    def _not_started(self, error: OSError) -> EngineStartFailed:
        hint = likely_fix(str(error))
        if error.filename == self._python:
            hint = "the interpreter of this engine is gone; `llmrun engines` lists what is installed"
        reason = f"the process of the engine {self._spec.name} cannot be started: {error}"
        return EngineStartFailed(f"{reason}\nlikely fix: {hint}" if hint else reason, hint=hint)

    def _spawn(self, fd: int) -> ChildProcess:
        folder = self._private_folder()
        listen = str(folder / "engine.sock")
        argv = [self._python, "-m", "runner.engines.child"]
        argv += ["--fd", str(fd), "--listen", listen, "--parent", str(os.getpid())]
        return self._supervisor.spawn(argv, env=self._environment(folder), pass_fds=(fd,))

    def _environment(self, folder: Path) -> dict[str, str]:
        """Our packages must be importable there, and nothing else of ours when the interpreter is another one."""
        source = Path(runner.__file__).resolve().parent.parent
        ours = str(source)
        if self._python != sys.executable:
            ours = str(folder)
            for name in ("runner", "model_cards"):
                with contextlib.suppress(FileExistsError):
                    (folder / name).symlink_to(source / name)
        others = self._env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        fixed = {
            frames.FOLDER_VARIABLE: str(folder),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "GGML_NO_BACKTRACE": "1",
        }
        return {**fixed, **self._env, "PYTHONPATH": os.pathsep.join(part for part in (ours, others) if part)}

    def _private_folder(self) -> Path:
        if self._folder is None:
            folder = Path(tempfile.mkdtemp(prefix="llmrun-"))  # mode 0700
            if len(str(folder)) > _SOCKET_PATH_LIMIT - len("/engine.sock"):
                folder.rmdir()
                folder = Path(tempfile.mkdtemp(prefix="llmrun-", dir="/tmp"))
            self._folder = folder
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder

    def tidy(self) -> None:
        """See Connector."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class Joiner:
    """Connects to a child of another process; waits while that process starts it again."""

    def __init__(self, socket_path: str, name: str, timeout_s: float) -> None:
        self._path = socket_path
        self._name = name
        self._timeout_s = timeout_s

    @property
    def socket_path(self) -> str | None:
        """See Connector."""
        return self._path

    async def connect(self, on_lost: Callable[[Link, str], None], on_progress: ProgressCallback | None) -> Connection:
        """See Connector."""
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    connection = await self._try(on_lost, on_progress)
                    if connection is not None:
                        return connection
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise EngineDied(f"the engine {self._name} cannot be reached at {self._path}") from None

    async def _try(
        self, on_lost: Callable[[Link, str], None], on_progress: ProgressCallback | None
    ) -> Connection | None:
        waiter = _Waiter(on_lost, on_progress)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: waiter.link, self._path)
        except OSError:
            return None
        try:
            outcome = await waiter.outcome
        except BaseException:
            waiter.link.close()
            raise
        if isinstance(outcome, EngineInfo):
            return Connection(waiter.link, outcome, None)
        return None

    def tidy(self) -> None:
        """See Connector."""
