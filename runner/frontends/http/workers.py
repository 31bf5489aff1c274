"""--http-workers N: N processes share one port and one engine. This is the parent's side.

It owns the engine's child, starts the workers, replaces those that die, and ends them all. It serves no request itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from runner.catalog import Catalog
from runner.engines.process import ProcessEngine
from runner.engines.replicas import Replicas
from runner.errors import LlmrunError, UsageError
from runner.frontends.http.listen import bind, reserve
from runner.frontends.http.server import Stop
from runner.frontends.http.shared_metrics import keep_counters
from runner.frontends.http.worker import READY, SharedService, WorkerSpec
from runner.options import RunOptions
from runner.pipeline import ChatPipeline

_START_TIMEOUT_S = 60.0
_RESTART_AFTER_S = 0.5
_GRACE_S = 5.0


async def serve_workers(
    catalog: Catalog, options: RunOptions, stop: Stop, *, on_ready: Callable[[socket.socket], None]
) -> None:
    """Serve by options.http_workers processes until `stop` is asked.

    Raises UsageError for an engine that cannot be shared, LlmrunError when the port is taken or a worker cannot start.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise UsageError("--http-workers needs SO_REUSEPORT, which this system lacks; leave it out")
    services = _shared_services(catalog)
    bind(options.http_host, options.http_port).close()  # a shared bind would join a stranger's port in silence
    sock = reserve(options.http_host, options.http_port)
    folder = Path(tempfile.mkdtemp(prefix="llmrun-http-"))
    options = msgspec.structs.replace(options, http_port=sock.getsockname()[1])
    spec = WorkerSpec(services=services, options=options, metrics_folder=str(folder))
    workers = [Worker(spec, folder) for _ in range(options.http_workers)]
    try:
        await asyncio.gather(*(worker.start() for worker in workers))
        on_ready(sock)
        await _watch(workers, stop, options.drain_timeout_s)
    finally:
        await asyncio.gather(*(worker.kill() for worker in workers))
        sock.close()
        shutil.rmtree(folder, ignore_errors=True)


def _shared_services(catalog: Catalog) -> tuple[SharedService, ...]:
    found: dict[int, SharedService] = {}
    for name in catalog.names():
        service = catalog.get(name)
        engine = service.engine if isinstance(service, ChatPipeline) else None
        if not isinstance(engine, ProcessEngine | Replicas) or engine.socket_path is None:
            raise UsageError(
                f"--http-workers needs an engine process that several launchers can share; out={service.info.name} "
                "has none; leave --http-workers out"
            )
        engine.restart_eagerly = True  # no request of ours would make it start again
        shared = SharedService(
            card=service.card, names=(name,), engine_name=engine.name, socket_path=engine.socket_path
        )
        old = found.setdefault(id(service), shared)
        if old is not shared:
            found[id(service)] = msgspec.structs.replace(old, names=(*old.names, name))
    return tuple(found.values())


async def _watch(workers: list[Worker], stop: Stop, drain_timeout_s: float) -> None:
    """Replace workers that end by themselves, until asked to stop; then let them drain."""
    keeping = [asyncio.create_task(worker.keep()) for worker in workers]
    asked = asyncio.create_task(_until(stop.asked))
    try:
        await asyncio.wait([*keeping, asked], return_when=asyncio.FIRST_COMPLETED)
        for task in keeping:
            if task.done():
                task.result()  # a worker that cannot be started again ends the program with its reason
    finally:
        for task in (*keeping, asked):
            task.cancel()
        await asyncio.gather(*keeping, asked, return_exceptions=True)
    await _drain(workers, stop, drain_timeout_s + _GRACE_S)


async def _drain(workers: list[Worker], stop: Stop, timeout_s: float) -> None:
    ending = asyncio.create_task(_end_all(workers))
    hurrying = asyncio.create_task(_until(stop.now))
    done, _ = await asyncio.wait({ending, hurrying}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if hurrying in done and not ending.done():
        for worker in workers:
            worker.signal(signal.SIGTERM)  # the second one: stop at once
        await asyncio.wait({ending}, timeout=_GRACE_S)
    for task in (ending, hurrying):
        task.cancel()
    await asyncio.gather(ending, hurrying, return_exceptions=True)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _end_all(workers: list[Worker]) -> None:
    await asyncio.gather(*(worker.end() for worker in workers))


class Worker:
    """One place for a worker process; the process in it may be replaced."""

    def __init__(self, spec: WorkerSpec, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Ready to serve when it returns. Raises LlmrunError."""
        # A session of its own: Ctrl-C reaches the parent alone, which passes it on once.
        process = self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "runner.frontends.http.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(msgspec.json.encode(self._spec) + b"\n")
        line = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_START_TIMEOUT_S):
                await process.stdin.drain()
                line = await process.stdout.readline()
        if line != READY:
            await self.kill()
            raise LlmrunError(f"an HTTP worker did not start (exit code {process.returncode}); its reason stands above")

    async def keep(self) -> None:
        """Start it again whenever it ends. Raises LlmrunError when it cannot be started."""
        while True:
            assert self._process is not None
            code = await self._process.wait()
            sys.stderr.write(f"llmrun: http worker {self._process.pid} ended (exit code {code}); starting another\n")
            await self._bury()
            await asyncio.sleep(_RESTART_AFTER_S)
            await self.start()

    async def end(self) -> None:
        """Ask it to drain, and wait until it has ended."""
        self.signal(signal.SIGTERM)
        if self._process is not None:
            await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def kill(self) -> None:
        """End it now. Safe twice."""
        self.signal(signal.SIGKILL)
        await self._bury()

    async def _bury(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        keep_counters(self._folder, process.pid)
