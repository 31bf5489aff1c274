"""CoreSpawner: starts our worker in vLLM's environment and shakes hands with the EngineCore in it (see Connector).

Owns the private folder and the order of a start: report, HELLO, addresses, registration, READY, adapters, invitation of
further clients. What is said afterwards is link.py's; other processes than our worker are subclasses'.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
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
from runner.engines.vllm.adapters import Adapters
from runner.engines.vllm.limits import Limits
from runner.engines.vllm.link import CoreLink
from runner.engines.vllm.preload import preloads
from runner.engines.vllm.report import JOIN, Invitation, Opening, Phase, Refusal, Report, Word, check_version
from runner.engines.vllm.sampling import CAPABILITIES
from runner.engines.vllm.settings import Adapter, Settings
from runner.engines.vllm.sockets import CoreGone, CoreSockets, data_addresses
from runner.errors import EngineFailed, EngineStartFailed, RequestError
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
        self._adapters = Adapters(settings.adapters, settings.adapter_room)
        self._supervisor = Supervisor(spec.name)
        self._folder: Path | None = None
        self._num_starts = 0

    @property
    def socket_path(self) -> str | None:
        """Where further clients ask for an invitation (joiner.py), if there may be any."""
        return str(self._folder / JOIN) if self._folder is not None and self._num_clients > 1 else None

    @property
    def _num_clients(self) -> int:
        return self._spec.options.num_frontends

    async def connect(self, on_lost: Callable[[Link, str], None], on_progress: ProgressCallback | None) -> Connection:
        """See Connector."""
        start = Start(on_lost, on_progress)
        folder = self._private_folder()
        self._num_starts += 1
        link = CoreLink(start.hear, start.lost)
        sockets = await CoreSockets.listen(folder, self._num_starts, is_remote_handshake=self.is_remote_handshake)
        try:
            process = await self._spawn(link, sockets, folder)
        except OSError as error:
            sockets.close()
            self.tidy()
            raise self._not_started(error) from error
        try:
            info = await self._ready(start, link, sockets, process)
        except BaseException:
            process.kill()
            link.close()
            link.release()
            sockets.close()
            await process.wait(_REAP_S)
            self.tidy()
            raise
        start.is_ready = True
        return Connection(link, info, process)

    is_remote_handshake = False
    """EngineCore says HELLO at a TCP port, not at a socket file."""

    def command(self, sockets: CoreSockets, folder: Path, fd: int) -> list[str]:
        """What is run; `fd` is its end of the socket that tells its life."""
        own = ["--llmrun-fd", str(fd), "--llmrun-parent", str(os.getpid())]
        own += ["--llmrun-handshake", sockets.handshake_address, "--llmrun-folder", str(folder)]
        own += ["--llmrun-clients", str(self._num_clients)]
        if self._settings.place is not None:
            own += ["--llmrun-place", msgspec.json.encode(self._settings.place).decode()]
        return [self._python, *self._worker, *own, *self._settings.arguments]

    async def _spawn(self, link: CoreLink, sockets: CoreSockets, folder: Path) -> ChildProcess:
        ours, theirs = socket.socketpair()
        with theirs:
            argv = self.command(sockets, folder, theirs.fileno())
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
        start: Start,
        link: CoreLink,
        sockets: CoreSockets,
        process: ChildProcess,
    ) -> EngineInfo:
        timeout_s = self._spec.options.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._shake_hands(start, link, sockets)
        except TimeoutError:
            reason = f"it was not ready within {timeout_s:g} s (it was: {start.phase})"
            hint = "give it more time with --start-timeout-s, or read its log"
            raise failed_start(process, reason=reason, hint=hint) from None
        except _Lost:
            code = await process.wait(1.0)
            refusal = start.refusal
            if refusal is not None:
                raise failed_start(process, reason=refusal.reason, hint=refusal.hint) from None
            raise failed_start(process, code=code) from None
        except (EngineFailed, CoreGone) as error:
            raise failed_start(process, reason=str(error)) from error

    async def _shake_hands(self, start: Start, link: CoreLink, sockets: CoreSockets) -> EngineInfo:
        start.say("importing vllm")
        _, hello = await start.wait_for(sockets.poll_handshake)
        sockets.answer_handshake(self._addresses())
        if hello.get("status") != "HELLO":
            raise EngineFailed(f"vLLM began with {hello!r}; HELLO is wanted")
        start.say("loading the model")
        _, ready = await start.wait_for(sockets.poll_input)
        await start.wait_for(sockets.poll_handshake)  # READY
        report = await self.report(start)
        check_version(str(ready.get("vllm_version") or report.version))
        opening = self._opening(report, ready)
        link.open(opening, sockets, self._adapters)
        for adapter in self._adapters.all():
            start.say(f"loading adapter {adapter.name}")
            await self._load_again(link, adapter)
        info = self._info(opening, ready, await link.call("get_supported_tasks"))
        if self._num_clients > 1:
            link.tell(msgspec.json.encode(self._invitation(opening, info)) + b"\n")
        return info

    async def _load_again(self, link: CoreLink, adapter: Adapter) -> None:
        """One that a client brought may be gone by the time of a restart; the others go on without it."""
        try:
            await link.add(adapter)
        except RequestError as error:
            if self._adapters.is_fixed(adapter):
                raise EngineFailed(str(error)) from error
            sys.stderr.write(f"llmrun: the adapter {adapter.name} is no longer offered: {error}\n")
            self._adapters.drop(adapter.name)

    async def report(self, start: Start) -> Report:
        """What the worker said of the vLLM that it found. Raises EngineFailed."""
        if start.report is None:
            raise EngineFailed("the worker gave no report of its vLLM")
        return start.report

    def limits(self, report: Report, context_length: int) -> Limits | None:
        """For the launcher's own checks, where no guard stands in front of EngineCore."""
        return None

    def _opening(self, report: Report, ready: dict[str, Any]) -> Opening:
        options = self._spec.options
        max_running = int(ready.get("max_num_seqs") or options.max_running or 256)
        context_length = int(ready.get("max_model_len") or report.details.get("max_model_len") or 0)
        return Opening(
            report=report,
            max_running=max_running,
            max_open=None if options.max_queue is None else max_running + options.max_queue,
            limits=self.limits(report, context_length),
        )

    def _invitation(self, opening: Opening, info: EngineInfo) -> Invitation:
        """Each further client may have its share of what may be open."""
        most = opening.max_open
        share = None if most is None else -(-most // (self._num_clients - 1))
        theirs = msgspec.structs.replace(opening, adapters=self._settings.adapters, max_open=share)
        return Invitation(opening=theirs, info=info, number=self._num_starts)

    def _addresses(self) -> bytes:
        """EngineHandshakeMetadata of vllm/v1/engine/utils.py: the sockets of all clients, bound already or not."""
        assert self._folder is not None
        clients = [data_addresses(self._folder, self._num_starts, client) for client in range(self._num_clients)]
        addresses = {
            "inputs": [inputs for inputs, _ in clients],
            "outputs": [outputs for _, outputs in clients],
            "coordinator_input": None,
            "coordinator_output": None,
            "frontend_stats_publish_address": None,
        }
        return msgspec.msgpack.encode({"addresses": addresses, "parallel_config": {}})

    def _info(self, opening: Opening, ready: dict[str, Any], tasks: Any) -> EngineInfo:
        report = opening.report
        capabilities: tuple[str, ...] = () if report.is_pooling else CAPABILITIES
        capabilities += ("load_adapter",) if self._adapters.may_grow else ()
        capabilities += ("embed",) if "embed" in (tasks or ()) else ()
        details = {"platform": report.platform, **report.details}
        for name in ("dtype", "num_gpu_blocks", "block_size", "kv_cache_size_tokens", "world_size"):
            if ready.get(name) is not None:
                details[name] = ready[name]
        return EngineInfo(
            name="vllm",
            version=str(ready.get("vllm_version") or report.version),
            context_length=int(ready.get("max_model_len") or report.details.get("max_model_len") or 0),
            max_running=opening.max_running,
            capabilities=capabilities,
            details=details,
        ).with_adapters(self._adapters.names())

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
        preload = preloads(self._python, os.environ.get("LD_PRELOAD", ""))
        return {
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            **({} if preload is None else {"LD_PRELOAD": preload}),
            **self._settings.env,
            "PYTHONPATH": path,
        }

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


class Start:
    """What is known during a start."""

    def __init__(self, on_lost: Callable[[Link, str], None], on_progress: ProgressCallback | None) -> None:
        self.phase = "starting"
        self.report: Report | None = None
        self.refusal: Refusal | None = None
        self.is_ready = False
        self._why: str | None = None
        self._on_lost = on_lost
        self._on_progress = on_progress

    def say(self, phase: str) -> None:
        """To whoever waits for the start."""
        self.phase = phase
        if self._on_progress is not None:
            self._on_progress(phase, None)

    def hear(self, line: bytes) -> None:
        """A line of the worker. Raises msgspec.MsgspecError."""
        word = msgspec.json.decode(line, type=Word)
        if isinstance(word, Phase):
            self.say(word.text)
        elif isinstance(word, Refusal):
            self.refusal = word
        else:
            self.report = word

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
