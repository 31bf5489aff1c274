"""What runs in the child's main thread: the engine, driven by commands from the socket thread.

Owns the engine object and its life. Knows no sockets and no keys: results go to a `Sink` under the request's id.
Every call into a StepEngine but `interrupt` happens in this one thread (llama.cpp's libgomp pool belongs to the thread
that first used it; a second thread would start a pool of its own and halve the speed). Runs on Python 3.10.
"""

from __future__ import annotations

import queue
import time
import traceback
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from model_cards.errors import CardError
from runner.engines.base import StepEngine, StepOutput
from runner.engines.block_log import BlockEvent, BlockLog
from runner.engines.failures import describe
from runner.engines.frames import Failed, Start
from runner.errors import EngineFailed, EngineStartFailed, LlmrunError
from runner.registry import load
from runner.types import ChatRequest, EmbedRequest, EmbedResult, EngineInfo, TextDelta, TokenRequest

STATS_EVERY_S = 0.25
BLOCKS_EVERY_S = 0.05


class Sink(Protocol):
    """Where a host sends what its engine makes. Every method is thread-safe and returns at once."""

    def progress(self, phase: str, share: float | None = None) -> None:
        """The start has come so far."""

    def ready(self, info: EngineInfo) -> None:
        """Requests may come now."""

    def failed(self, failure: Failed) -> None:
        """The engine did not start."""

    def outputs(self, outputs: list[StepOutput]) -> None:
        """One step's deltas and errors."""

    def texts(self, deltas: list[tuple[str, TextDelta]]) -> None:
        """Deltas of a TextSource."""

    def error(self, request_id: str, error: BaseException) -> None:
        """The end of one request."""

    def embedded(self, request_id: str, result: EmbedResult) -> None:
        """The answer to an embed request."""

    def blocks(self, events: list[BlockEvent]) -> None:
        """What has happened to the engine's prefix cache."""

    def error_all(self, error: BaseException) -> None:
        """The end of every open request and of this process."""


class TextSource(Protocol):
    """What a child of the shape `text` hosts: messages in, text out (see runner.services for the rules)."""

    async def start(self) -> EngineInfo:
        """Ready when it returns."""

    def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """The last delta, and only it, has `usage`."""

    async def stats(self) -> dict[str, float]:
        """As Engine.stats."""

    async def close(self) -> None:
        """Safe twice."""


class Host(Protocol):
    """One engine in this process. `run` is called in the main thread, all else in the socket thread."""

    def run(self) -> int:
        """Load, report, serve until `close`; returns the exit code. Never raises."""

    def submit(self, request_id: str, request: TokenRequest | ChatRequest) -> None:
        """Queue a request."""

    def embed(self, request_id: str, request: EmbedRequest) -> None:
        """Queue an embed request."""

    def cancel(self, request_id: str) -> None:
        """Forget a request, also in the middle of a step."""

    def ask_stats(self, reply: Callable[[dict[str, float]], None]) -> None:
        """Call `reply` (in the engine's thread) with fresh numbers."""

    def close(self) -> None:
        """Let `run` return."""

    def busy_s(self) -> float:
        """How long the engine has been in the present step or has blocked its loop; 0 when it is responsive."""

    def stats(self) -> dict[str, float]:
        """The engine's last numbers."""


def start_failure(error: BaseException) -> Failed:
    """What the user hears of a failed start; the traceback goes to the log."""
    traceback.print_exception(error)
    if isinstance(error, EngineStartFailed):
        return Failed(error.reason, error.hint)
    return Failed(str(error) if isinstance(error, LlmrunError | CardError) else describe(error))


def attach_progress(engine: Any, sink: Sink) -> None:
    """An engine with an attribute `progress` gets a function (phase, share) there, to call while it starts."""
    if hasattr(engine, "progress"):
        engine.progress = sink.progress


class StepHost:
    """Drives a StepEngine: commands, then a step, for ever."""

    def __init__(self, start: Start, sink: Sink) -> None:
        self._start = start
        self._sink = sink
        self._engine: StepEngine | None = None
        self._commands: queue.SimpleQueue[Callable[[StepEngine], None] | None] = queue.SimpleQueue()
        self._open: set[str] = set()
        self._step_began = 0.0
        self._num_steps = 0
        self._stats: dict[str, float] = {}
        self._stats_at = 0.0
        self._tell_blocks_at = 0.0
        self._block_log: BlockLog | None = None
        """Of an engine that has one, once somebody wants to know."""

    def run(self) -> int:
        """See Host."""
        try:
            engine: StepEngine = load(self._start.child)()
            attach_progress(engine, self._sink)
            info = engine.start(self._start.spec)
        except BaseException as error:
            self._sink.failed(start_failure(error))
            return 1
        self._engine = engine
        self._sink.ready(info)
        return self._serve(engine)

    def _serve(self, engine: StepEngine) -> int:
        try:
            while self._run_commands(engine):
                if engine.has_work():
                    self._step(engine)
            engine.close()
        except BaseException as error:
            traceback.print_exception(error)
            self._sink.error_all(EngineFailed(f"the engine failed in a step: {describe(error)}"))
            return 1
        return 0

    def _step(self, engine: StepEngine) -> None:
        self._step_began = time.monotonic()
        outputs = engine.step()
        self._step_began = 0.0
        self._num_steps += 1
        for output in outputs:
            if output.error is not None or (output.delta is not None and output.delta.finish is not None):
                self._open.discard(output.id)
        if outputs:
            self._sink.outputs(outputs)
        if self._block_log is not None and (time.monotonic() >= self._tell_blocks_at or not engine.has_work()):
            self._tell_blocks(self._block_log)

    def _tell_blocks(self, log: BlockLog) -> None:
        """Several steps' at once: each time wakes the socket thread, which takes a core from those that compute."""
        self._tell_blocks_at = time.monotonic() + BLOCKS_EVERY_S
        events = log.take()
        if events:
            self._sink.blocks(events)

    def _run_commands(self, engine: StepEngine) -> bool:
        """Run all that wait; block for one when there is nothing else to do. False when it is time to close."""
        block = not engine.has_work()
        if block and self._open and self._commands.empty():
            self._fail_lost()
        self._refresh_stats(engine, force=block)
        while True:
            try:
                command = self._commands.get(block)
            except queue.Empty:
                return True
            if command is None:
                return False
            command(engine)
            block = False

    def _fail_lost(self) -> None:
        """The engine says that it has no work, but these requests never ended: a bug of the engine, never a hang."""
        for request_id in self._open:
            self._sink.error(request_id, EngineFailed("the engine lost this request (it has no work left)"))
        self._open.clear()

    def _refresh_stats(self, engine: StepEngine, *, force: bool) -> None:
        now = time.monotonic()
        if force or now - self._stats_at > STATS_EVERY_S:
            self._stats_at = now
            self._stats = {**engine.stats(), "num_steps": float(self._num_steps)}

    def submit(self, request_id: str, request: TokenRequest | ChatRequest) -> None:
        """See Host."""
        assert isinstance(request, TokenRequest)

        def add(engine: StepEngine) -> None:
            try:
                engine.add(request)
            except Exception as error:
                if not isinstance(error, LlmrunError):
                    traceback.print_exception(error)
                self._sink.error(request_id, error)
            else:
                self._open.add(request_id)

        self._commands.put(add)

    def embed(self, request_id: str, request: EmbedRequest) -> None:
        """See Host."""

        def run(engine: StepEngine) -> None:
            self._step_began = time.monotonic()
            try:
                self._sink.embedded(request_id, engine.embed(request))
            except Exception as error:
                if not isinstance(error, LlmrunError):
                    traceback.print_exception(error)
                self._sink.error(request_id, error)
            finally:
                self._step_began = 0.0

        self._commands.put(run)

    def cancel(self, request_id: str) -> None:
        """See Host."""

        def run(engine: StepEngine) -> None:
            self._open.discard(request_id)
            engine.cancel(request_id)

        self._commands.put(run)
        if self._step_began and self._engine is not None:
            self._engine.interrupt()

    def ask_stats(self, reply: Callable[[dict[str, float]], None]) -> None:
        """See Host."""

        def run(engine: StepEngine) -> None:
            self._refresh_stats(engine, force=True)
            reply(self._stats)

        self._commands.put(run)

    def watch_blocks(self) -> None:
        """Tell from now on what happens to the prefix cache, where the engine has an attribute `block_log`."""

        def run(engine: StepEngine) -> None:
            log: BlockLog | None = getattr(engine, "block_log", None)
            if log is not None:
                log.start()
                self._block_log = log
                self._tell_blocks(log)

        self._commands.put(run)

    def close(self) -> None:
        """See Host."""
        self._commands.put(None)
        if self._step_began and self._engine is not None:
            self._engine.interrupt()

    def busy_s(self) -> float:
        """See Host."""
        began = self._step_began
        return time.monotonic() - began if began else 0.0

    def stats(self) -> dict[str, float]:
        """See Host."""
        return self._stats
