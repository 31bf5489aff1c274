"""Hosts an asyncio engine (an Engine, or a TextSource) in the child's main thread, where user code expects to run.

Owns that event loop and one task a request. The socket thread stays responsive when the engine blocks its loop.
Runs on Python 3.10.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from runner.engines.base import Engine, EngineSpec, StepOutput
from runner.engines.failures import describe
from runner.engines.frames import Start
from runner.engines.hosts import STATS_EVERY_S, Sink, TextSource, attach_progress, start_failure
from runner.errors import EngineFailed, LlmrunError
from runner.registry import load
from runner.types import ChatRequest, EmbedRequest, TokenRequest

_CLOSE_BOUND_S = 3.0


class AsyncHost:
    """Drives an Engine or a TextSource in an event loop of the main thread."""

    def __init__(self, start: Start, sink: Sink) -> None:
        self._start = start
        self._sink = sink
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: Any = None
        self._closing: asyncio.Event | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._batch: list[Any] = []
        self._ticked_at = time.monotonic()
        self._stats: dict[str, float] = {}

    def run(self) -> int:
        """See Host."""
        try:  # outside of any event loop: a user's file may run one of its own while it is loaded
            factory: Callable[[EngineSpec], Engine | TextSource] = load(self._start.child)
            self._engine = factory(self._start.spec)
        except BaseException as error:
            self._sink.failed(start_failure(error))
            return 1
        try:
            return asyncio.run(self._main())
        except BaseException as error:
            traceback.print_exception(error)
            self._sink.error_all(EngineFailed(f"the engine process failed: {describe(error)}"))
            return 1

    async def _main(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        try:
            attach_progress(self._engine, self._sink)
            info = await self._engine.start()
        except BaseException as error:
            self._sink.failed(start_failure(error))
            return 1
        ticker = asyncio.create_task(self._tick())
        self._sink.ready(info)
        await self._closing.wait()
        ticker.cancel()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.wait({asyncio.ensure_future(self._engine.close())}, timeout=_CLOSE_BOUND_S)
        return 0

    async def _tick(self) -> None:
        while True:
            self._ticked_at = time.monotonic()
            self._stats = await self._engine.stats()
            await asyncio.sleep(STATS_EVERY_S)

    async def _pump(self, request_id: str, request: TokenRequest | ChatRequest) -> None:
        is_text = isinstance(request, ChatRequest)
        try:
            async with contextlib.aclosing(self._engine.generate(request)) as stream:
                async for delta in stream:
                    self._emit((request_id, delta) if is_text else StepOutput(request_id, delta))
                    if (delta.usage if is_text else delta.finish) is not None:
                        return
            raise EngineFailed("the engine ended the stream without a finish reason")
        except Exception as error:
            if not isinstance(error, LlmrunError):
                traceback.print_exception(error)
            self._flush()
            self._sink.error(request_id, error)
        finally:
            self._tasks.pop(request_id, None)

    def _emit(self, item: Any) -> None:
        """All that is made in one turn of the loop leaves together."""
        if not self._batch:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        self._batch.append(item)

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        if self._start.shape == "text":
            self._sink.texts(batch)
        else:
            self._sink.outputs(batch)

    def _soon(self, call: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
            self._loop.call_soon_threadsafe(call, *args)

    def submit(self, request_id: str, request: TokenRequest | ChatRequest) -> None:
        """See Host."""
        self._soon(self._open_stream, request_id, request)

    def _open_stream(self, request_id: str, request: TokenRequest | ChatRequest) -> None:
        self._tasks[request_id] = asyncio.ensure_future(self._pump(request_id, request))

    def embed(self, request_id: str, request: EmbedRequest) -> None:
        """See Host."""

        async def run() -> None:
            try:
                self._sink.embedded(request_id, await self._engine.embed(request))
            except Exception as error:
                self._sink.error(request_id, error)
            finally:
                self._tasks.pop(request_id, None)

        def spawn() -> None:
            self._tasks[request_id] = asyncio.ensure_future(run())

        self._soon(spawn)

    def cancel(self, request_id: str) -> None:
        """See Host."""
        self._soon(self._cancel, request_id)

    def _cancel(self, request_id: str) -> None:
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()

    def ask_stats(self, reply: Callable[[dict[str, float]], None]) -> None:
        """See Host."""

        async def run() -> None:
            try:
                reply(await self._engine.stats())
            finally:
                self._tasks.pop(f"stats {id(reply)}", None)

        def spawn() -> None:
            self._tasks[f"stats {id(reply)}"] = asyncio.ensure_future(run())

        self._soon(spawn)

    def close(self) -> None:
        """See Host."""
        if self._loop is None or self._closing is None:
            sys.exit(0)
        self._soon(self._closing.set)

    def busy_s(self) -> float:
        """See Host."""
        silent_s = time.monotonic() - self._ticked_at
        return silent_s if silent_s > 4 * STATS_EVERY_S else 0.0

    def stats(self) -> dict[str, float]:
        """See Host."""
        return self._stats
