"""CoreSpawner: starts our worker in vLLM's environment and shakes hands with the EngineCore in it (see Connector).

Owns the command line, the private folder and the order of a start: report, HELLO, addresses, registration, READY,
adapters. What is said afterwards is link.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import runner
from runner.engines.base import EngineSpec
from runner.engines.connectors import Connection, ProgressCallback
from runner.engines.failed_start import failed_start
from runner.engines.link import Link
from runner.engines.supervisor import ChildProcess, Supervisor
from runner.engines.vllm.link import CoreLink
from runner.engines.vllm.report import Report
from runner.engines.vllm.sampling import CAPABILITIES
from runner.engines.vllm.settings import Settings
from runner.engines.vllm.sockets import CoreSockets
from runner.errors import EngineFailed, EngineStartFailed
from runner.types import EngineInfo

_POLL_S = 0.01
_REAP_S = 2.0
WORKER = ("-m", "runner.engines.vllm.worker")


class CoreSpawner:
    """See Connector. `worker` is the command after the interpreter, for tests."""

    def __init__(self, spec: EngineSpec, settings: Settings, python: str, worker: tuple[str, ...] = WORKER) -> None:
        self._spec = spec
        self._settings = settings
        self._python = python
        self._worker = worker
        self._supervisor = Supervisor(spec.name)
        self._folder: Path | None = None
        self._num_starts = 0

    @property
    def socket_path(self) -> str | None:
        """EngineCore speaks to one launcher process only."""
        return None

    async def connect(self, on_lost: Callable[[Link, str], None], on_progress: ProgressCallback | None) -> Connection:
        """See Connector."""
        start = _Start(on_lost)
        folder = self._private_folder()
        self._num_starts += 1
        sockets = CoreSockets(folder, self._num_starts)
        link = CoreLink(start.set_report, start.lost, sockets)
        try:
            process = await self._spawn(link, sockets, folder)
        except OSError as error:
            link.release()
            self.tidy()
            raise self._not_started(error) from error
        try:
            info = await self._ready(start, link, sockets, process, on_progress)
        except BaseException:
            process.kill()
            link.close()
            link.release()
            await process.wait(_REAP_S)
            self.tidy()
            raise
        start.is_ready = True
        return Connection(link, info, process)

    async def _spawn(self, link: CoreLink, sockets: CoreSockets, folder: Path) -> ChildProcess:
        ours, theirs = socket.socketpair()
        with theirs:
            own = ["--llmrun-fd", str(theirs.fileno()), "--llmrun-parent", str(os.getpid())]
            own += ["--llmrun-handshake", sockets.handshake_address, "--llmrun-folder", str(folder)]
            argv = [self._python, *self._worker, *own, *self._settings.arguments]
            try:
                process = self._supervisor.spawn(
                    argv, env=self._environment(folder), pass_fds=(theirs.fileno(),), cwd=str(folder)
                )
            except OSError:
                ours.close()
                raise
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        return process

    async def _ready(
        self,
        start: _Start,
        link: CoreLink,
        sockets: CoreSockets,
        process: ChildProcess,
        on_progress: ProgressCallback | None,
    ) -> EngineInfo:
        timeout_s = self._spec.options.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._shake_hands(start, link, sockets, on_progress)
        except TimeoutError:
            reason = f"it was not ready within {timeout_s:g} s (it was: {start.phase})"
            hint = "give it more time with --start-timeout-s, or read its log"
            raise failed_start(process, reason=reason, hint=hint) from None
        except _Lost:
            code = await process.wait(1.0)
            raise failed_start(process, code=code) from None
        except EngineFailed as error:
            raise failed_start(process, reason=str(error)) from error

    async def _shake_hands(
        self, start: _Start, link: CoreLink, sockets: CoreSockets, on_progress: ProgressCallback | None
    ) -> EngineInfo:
        def say(phase: str) -> None:
            start.phase = phase
            if on_progress is not None:
                on_progress(phase, None)

        say("importing vllm")
        identity, hello = await start.wait_for(sockets.poll_handshake)
        sockets.answer_handshake(identity, _addresses(sockets))
        report = start.report
        if hello.get("status") != "HELLO" or report is None:
            raise EngineFailed(f"vLLM began with {hello!r}; HELLO and a report are wanted")
        say("loading the model")
        _, ready = await start.wait_for(sockets.poll_input)
        await start.wait_for(sockets.poll_handshake)  # READY
        max_running = int(ready.get("max_num_seqs") or self._spec.options.max_running or 256)
        link.open(report, (), max_running, self._spec.options.max_queue)
        for adapter in self._settings.adapters:
            say(f"loading adapter {adapter.name}")
            await link.load_adapter(adapter)
        tasks = await link.call("get_supported_tasks")
        return self._info(report, ready, max_running, tasks)

    def _info(self, report: Report, ready: dict[str, Any], max_running: int, tasks: Any) -> EngineInfo:
        capabilities: tuple[str, ...] = () if report.is_pooling else CAPABILITIES
        capabilities += tuple(f"adapter:{adapter.name}" for adapter in self._settings.adapters)
        capabilities += ("embed",) if "embed" in (tasks or ()) else ()
        details = {"platform": report.platform, **report.details}
        for name in ("dtype", "num_gpu_blocks", "block_size", "kv_cache_size_tokens", "world_size"):
            if ready.get(name) is not None:
                details[name] = ready[name]
        return EngineInfo(
            name="vllm",
            version=report.version,
            context_length=int(ready.get("max_model_len") or report.details.get("max_model_len") or 0),
            max_running=max_running,
            capabilities=capabilities,
            details=details,
        )

    def _not_started(self, error: OSError) -> EngineStartFailed:
        hint = "`llmrun engines` lists what is installed; --engine-python names another Python"
        return EngineStartFailed(
            f"the process of the engine {self._spec.name} cannot be started: {error}\nlikely fix: {hint}", hint=hint
        )

    def _environment(self, folder: Path) -> dict[str, str]:
        """Our packages are importable there by links, and nothing else of ours."""
        source = Path(runner.__file__).resolve().parent.parent
        for name in ("runner", "model_cards"):
            with contextlib.suppress(FileExistsError):
                (folder / name).symlink_to(source / name)
        path = os.pathsep.join(part for part in (str(folder), os.environ.get("PYTHONPATH", "")) if part)
        return {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **self._settings.env, "PYTHONPATH": path}

    def _private_folder(self) -> Path:
        if self._folder is None:
            folder = Path(tempfile.mkdtemp(prefix="llmrun-"))  # mode 0700
            if len(str(folder)) > 90:  # sun_path holds 104 bytes or more
                folder.rmdir()
                folder = Path(tempfile.mkdtemp(prefix="llmrun-", dir="/tmp"))
            self._folder = folder
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder

    def tidy(self) -> None:
        """See Connector."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class _Lost(Exception):
    """The worker ended before it was ready."""


class _Start:
    """What is known during a start."""

    def __init__(self, on_lost: Callable[[Link, str], None]) -> None:
        self.phase = "starting"
        self.report: Report | None = None
        self.is_ready = False
        self._why: str | None = None
        self._on_lost = on_lost

    def set_report(self, report: Report) -> None:
        self.report = report

    def lost(self, link: Link, why: str) -> None:
        if self.is_ready:
            self._on_lost(link, why)
        else:
            self._why = why
            link.fail(why or "the worker ended")

    async def wait_for(self, poll: Callable[[], list[bytes] | None]) -> tuple[bytes, dict[str, Any]]:
        """The next message of a socket. Raises _Lost when the worker ends first."""
        while self._why is None:
            message = poll()
            if message is not None:
                body = msgspec.msgpack.decode(message[1]) if message[1] else {}
                return message[0], body if isinstance(body, dict) else {}
            await asyncio.sleep(_POLL_S)
        raise _Lost


def _addresses(sockets: CoreSockets) -> bytes:
    """EngineHandshakeMetadata of vllm/v1/engine/utils.py."""
    addresses = {
        "inputs": [sockets.input_address],
        "outputs": [sockets.output_address],
        "coordinator_input": None,
        "coordinator_output": None,
        "frontend_stats_publish_address": None,
    }
    return msgspec.msgpack.encode({"addresses": addresses, "parallel_config": {}})
