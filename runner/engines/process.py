"""ProcessEngine: an engine that lives in a child process, as the launcher sees it (an `Engine`).

Owns its life: start, death, bounded restarts, close. How a child is reached is connectors.py's, what is said on the
connection link.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any

from runner.engines import frames
from runner.engines.base import EngineSpec
from runner.engines.connectors import BlocksCallback, Connection, Connector, Joiner, ProgressCallback, Spawner
from runner.engines.frames import Shape
from runner.engines.link import Link
from runner.engines.supervisor import ChildProcess, RestartBudget
from runner.errors import EngineBusy, EngineDied, UnsupportedField
from runner.types import ChatRequest, EmbedRequest, EmbedResult, EngineInfo, TextDelta, TokenDelta, TokenRequest

_WATCH_S = 1.0
_EXIT_BOUND_S = 0.3
_REAP_S = 2.0
_LAST_WORDS = 5


class ProcessEngine:
    """Speaks to one child. `child` is "module:attr": a StepEngine class (shape `step`), or a factory `make(spec)` of an
    Engine (`async`) or of a hosts.TextSource (`text`), imported in the child only.

    `on_progress(phase, share)` is called while it starts. `hung_after_s` without a sign of life turns `health` red;
    after `kill_after_s` the child is killed and every open stream raises EngineDied.
    """

    def __init__(
        self,
        spec: EngineSpec,
        child: str,
        *,
        shape: Shape = "step",
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        restart_eagerly: bool = False,
        hung_after_s: float = 10.0,
        kill_after_s: float = 60.0,
        connector: Connector | None = None,
    ) -> None:
        self.name = spec.name
        self.info: EngineInfo | None = None
        self.on_progress: ProgressCallback | None = None
        self.restart_eagerly = restart_eagerly
        self.num_restarts = 0
        self._hung_after_s = hung_after_s
        self._kill_after_s = kill_after_s
        self._connector: Connector = connector or Spawner(spec, child, shape, python, env)
        self._budget = RestartBudget(spec.options.max_restarts)
        self._connection: Connection | None = None
        self._starting: asyncio.Task[None] | None = None
        self._burial: asyncio.Task[None] | None = None
        self._watch_task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._silent_s = 0.0
        self._death: str | None = None

    @classmethod
    def attach(
        cls, socket_path: str, spec: EngineSpec, *, timeout_s: float = 60.0, connector: Connector | None = None
    ) -> ProcessEngine:
        """An engine in the child of another process of this launcher, which owns it (`--http-workers`)."""
        engine = cls(spec, "", connector=connector or Joiner(socket_path, spec.name, timeout_s))
        engine._budget = RestartBudget(sys.maxsize)  # the owner counts; this one only connects again
        return engine

    @property
    def socket_path(self) -> str | None:
        """For `attach` in other processes; set once started."""
        return self._connector.socket_path

    @property
    def pid(self) -> int | None:
        """The child's process id, where it is ours and runs."""
        process = self._connection.process if self._connection is not None else None
        return process.pid if process is not None and process.poll() is None else None

    @property
    def is_up(self) -> bool:
        """Whether a request would be sent at once."""
        return self._connection is not None and self._connection.link.broken is None

    @property
    def num_open(self) -> int:
        """Streams that are open now."""
        return len(self._connection.link.streams) if self._connection is not None else 0

    async def start(self) -> EngineInfo:
        """See Engine. Cancelling it kills the child."""
        try:
            await self._ready_link()
        except asyncio.CancelledError:
            await self._cancel(self._starting)
            raise
        assert self.info is not None
        return self.info

    def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine. Starts the child again if it has died."""
        connection = self._connection
        if connection is not None and connection.link.broken is None:
            return connection.link.generate(request)  # no second generator around each token
        return self._generate_after_start(request)

    async def _generate_after_start(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        link = await self._ready_link()
        async with contextlib.aclosing(link.generate(request)) as stream:
            async for delta in stream:
                yield delta

    async def chat(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """One text stream of a child of the shape `text`."""
        link = await self._ready_link()
        async with contextlib.aclosing(link.chat(request)) as stream:
            async for delta in stream:
                yield delta

    def watch_blocks(self, on_blocks: BlocksCallback) -> None:
        """See Spawner.watch_blocks; where the child is another's, or no child of ours, nothing is heard."""
        if isinstance(self._connector, Spawner):
            self._connector.watch_blocks(on_blocks)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """See Engine."""
        link = await self._ready_link()
        if self.info is None or "embed" not in self.info.capabilities:
            raise UnsupportedField(f"the engine {self.name} makes no embeddings with this model", field="model")
        return await link.embed(request)

    async def load_adapter(self, name: str, path: str, *, replace: bool = False) -> EngineInfo:
        """See AdapterEngine. It is there after a restart too."""
        link = await self._ready_link()
        return self._now_with(await link.load_adapter(name, path, replace=replace))

    async def unload_adapter(self, name: str) -> EngineInfo:
        """See AdapterEngine."""
        link = await self._ready_link()
        return self._now_with(await link.unload_adapter(name))

    def _now_with(self, adapters: list[str]) -> EngineInfo:
        assert self.info is not None
        self.info = self.info.with_adapters(adapters)
        return self.info

    async def health(self) -> None:
        """See Engine: red from the instant the child is lost until it runs again."""
        if self._starting is not None:
            raise EngineBusy(f"the engine {self.name} is starting")
        connection = self._connection
        if connection is None or connection.link.broken is not None:
            raise EngineDied(self._death or f"the engine {self.name} does not run")
        if self._silent_s >= self._hung_after_s:
            raise EngineDied(f"the engine {self.name} has not answered for {self._silent_s:.0f} s")

    async def stats(self) -> dict[str, float]:
        """See Engine; also num_restarts, and step_s, how long the present step has taken."""
        numbers = {"num_restarts": float(self.num_restarts)}
        connection = self._connection
        if connection is not None and connection.link.broken is None:
            with contextlib.suppress(EngineDied):
                numbers.update(await connection.link.stats())
            numbers["step_s"] = connection.link.last_beat.busy_s
        return numbers

    async def close(self) -> None:
        """See Engine. Bounded: a child that does not leave politely is killed."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    # life

    async def _ready_link(self) -> Link:
        """The link, after a (re)start that all who wait share. Raises EngineDied or EngineStartFailed."""
        connection = self._connection
        if connection is not None and connection.link.broken is None:
            return connection.link
        if self._closing is not None:
            raise EngineDied(f"the engine {self.name} is closed")
        if self._starting is None:
            self._starting = self._own(self._connect())
            self._starting.add_done_callback(self._started)
        await asyncio.shield(self._starting)
        assert self._connection is not None
        return self._connection.link

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None

    async def _connect(self) -> None:
        if self._burial is not None:
            await self._burial  # the dead one must have given back its memory
        if self.info is not None:
            if not self._budget.take():
                last = f"\nit is not started again ({self._budget.max_restarts} restarts allowed)"
                raise EngineDied((self._death or "").removesuffix(last) + last)  # said once, however many ask
            self.num_restarts += 1
        self._connection = await self._connector.connect(self._lost, self.on_progress)
        self.info = self._connection.info
        self._silent_s = 0.0
        self._watch_task = self._own(self._watch(self._connection))

    def _lost(self, link: Link, why: str) -> None:
        """The link is over, and it was not us. Everyone hears of it within a second."""
        connection = self._connection
        if connection is None or connection.link is not link:
            link.fail(f"the engine {self.name} is gone")
        elif self._closing is None:
            self._death = f"the engine {self.name} is gone: {why or 'the connection ended'}"
            self._burial = self._own(self._bury(connection, why))

    async def _bury(self, connection: Connection, why: str) -> None:
        """Find out how the child ended, make sure that it did, and tell its streams."""
        await self._cancel(self._watch_task)
        process = connection.process
        if process is not None:
            why = await self._post_mortem(process, why)
        self._death = f"the engine {self.name} is gone: {why or 'the connection ended'}"
        connection.link.fail(self._death)
        if process is not None:
            await process.wait(_REAP_S)
        self._burial = None
        if self.restart_eagerly and self._starting is None and self._closing is None:
            self._starting = self._own(self._connect())
            self._starting.add_done_callback(self._started)

    async def _post_mortem(self, process: ChildProcess, why: str) -> str:
        """Why it ended, how, and its last words; it has ended, or is killed, when this returns."""
        code = await process.wait(_EXIT_BOUND_S)
        ending = process.describe_end() if code is not None else "it was killed"
        process.kill()
        tail = process.log_tail(_LAST_WORDS)
        return "; ".join(part for part in (why, ending) if part) + (f"\nits last words:\n{tail}" if tail else "")

    async def _watch(self, connection: Connection) -> None:
        """Count seconds without a heartbeat (by our own ticks: a suspended machine is not a hung child)."""
        seen = 0
        while True:
            await asyncio.sleep(_WATCH_S)
            if connection.process is not None:
                connection.process.trim_log()
            is_silent = connection.link.num_beats == seen
            seen = connection.link.num_beats
            self._silent_s = self._silent_s + _WATCH_S if is_silent else 0.0
            if self._silent_s >= self._kill_after_s:
                connection.link.abandon(f"it has not answered for {self._silent_s:.0f} s")

    async def _close(self) -> None:
        await self._cancel(self._starting)
        await self._cancel(self._watch_task)
        if self._burial is not None:
            await self._burial
        connection = self._connection
        if connection is not None:
            try:
                if connection.process is not None:
                    connection.link.send(frames.CLOSE, None)
                    await connection.process.stop()
            finally:
                connection.link.fail(f"the engine {self.name} was closed")
        self._connector.tidy()

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task whose exception is always looked at: awaited by those who need it, kept as the cause of death."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._note)
        return task

    def _note(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._death = str(error)

    async def _cancel(self, task: asyncio.Task[None] | None) -> None:
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait({task})
