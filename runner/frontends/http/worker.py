"""One of several serving processes (--http-workers): `python -m runner.frontends.http.worker`, its WorkerSpec on stdin.

It joins the engine child that the parent owns, shares the port, says `ready` on stdout, and ends when the parent does:
stdin stays open as long as the parent lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec

from model_cards.card import ModelCard
from runner import log
from runner.catalog import Catalog
from runner.errors import LlmrunError
from runner.options import RunOptions

READY = b"ready\n"


class SharedService(msgspec.Struct, frozen=True, kw_only=True):
    """A served model: its card, its names, and where its engine's child listens."""

    card: ModelCard
    names: tuple[str, ...]
    engine_name: str
    socket_path: str


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker needs; `options.http_port` is the real port."""

    services: tuple[SharedService, ...]
    options: RunOptions
    metrics_folder: str


def main() -> int:
    """Serve until told to stop; returns the exit code."""
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerSpec)
    log.set_up(spec.options.verbose)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(spec))
    except LlmrunError as error:
        sys.stderr.write(f"llmrun: http worker {os.getpid()}: {error}\n")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 1
    return 0


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(spec: WorkerSpec) -> None:
    from runner.frontends.http.server import Stop, handle_signals

    stop = Stop()
    handle_signals(stop)
    task = asyncio.current_task()
    assert task is not None
    lifeline = asyncio.create_task(_watch_parent(task, spec.metrics_folder))
    catalog = Catalog()
    try:
        await _join(spec, catalog)
        await _serve(spec, catalog, stop)
    finally:
        lifeline.cancel()
        await asyncio.gather(lifeline, return_exceptions=True)
        for name in catalog.names():
            await catalog.get(name).close()


async def _join(spec: WorkerSpec, catalog: Catalog) -> None:
    """A pipeline of our own in front of each shared engine."""
    from runner.engines.attach import attach
    from runner.engines.base import EngineSpec
    from runner.pipeline import ChatPipeline

    for shared in spec.services:
        engine = attach(shared.socket_path, EngineSpec(name=shared.engine_name, card=shared.card))
        pipeline = ChatPipeline(shared.card, engine, lenient=spec.options.lenient, say=lambda _: None)
        await pipeline.start()
        catalog.add(pipeline, *shared.names)


async def _serve(spec: WorkerSpec, catalog: Catalog, stop: Any) -> None:
    from runner.frontends.http.listen import bind
    from runner.frontends.http.server import serve
    from runner.frontends.http.shared_metrics import SharedMetrics
    from runner.frontends.http.state import State
    from runner.frontends.http.tls import load_tls

    options = spec.options
    state = State(catalog, options)
    shared = SharedMetrics(Path(spec.metrics_folder), state.registry)
    state.snapshot_all = shared.snapshot_all
    writing = asyncio.create_task(shared.keep_writing())
    try:
        sock = bind(options.http_host, options.http_port, shared=True)
        tls = load_tls(options)
        await serve(state, sock, stop, tls=tls, drain_timeout_s=options.drain_timeout_s, on_ready=_say_ready)
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


def _say_ready() -> None:
    os.write(sys.stdout.fileno(), READY)


async def _watch_parent(task: asyncio.Task[Any], folder: str) -> None:
    """Stdin ends when the parent is gone, however it went: end too, and leave no files behind."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    with contextlib.closing(transport):
        await reader.read()
        task.cancel()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
