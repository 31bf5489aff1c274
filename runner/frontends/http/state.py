"""What all handlers of one server share. Made by the frontend, read through `request.app[STATE]`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aiohttp import web

from runner.catalog import Catalog
from runner.errors import EngineDied, UsageError
from runner.frontends.http.auth import Keys, load_keys
from runner.frontends.http.cors import Cors
from runner.frontends.http.errors import ShuttingDown
from runner.frontends.http.record import Instruments, Record
from runner.frontends.http.sse import Pinger
from runner.metrics import FamilySnapshot, Registry
from runner.openai_requests import request_defaults
from runner.options import RunOptions
from runner.services import ChatService


class State:
    """One server: its models, keys, metrics, and the requests that run. Raises UsageError for wrong options."""

    def __init__(self, catalog: Catalog, options: RunOptions, *, keys: Keys | None = None) -> None:
        if options.body_limit_mb < 1:
            raise UsageError(f"--body-limit-mb must be at least 1, got {options.body_limit_mb}")
        self.catalog = catalog
        self.lenient = options.lenient
        self.allows_adapters = options.allow_runtime_lora
        self.defaults = request_defaults(options)
        self.body_limit = options.body_limit_mb * 1024 * 1024
        self.keys = load_keys(options) if keys is None else keys
        self.cors = Cors(options.cors_origins)
        self.registry = Registry()
        self.instruments = Instruments(self.registry)
        self.pinger = Pinger()
        self.started_at = int(time.time())
        self.version = _version()
        self.logs_probes = options.verbose > 0
        self.log: Callable[[dict[str, Any]], None] = _no_log
        self.snapshot_all: Callable[[], list[FamilySnapshot]] = self.registry.snapshot
        """Metrics of this process, or of all worker processes together."""
        self.is_draining = False
        self.is_stopping = False
        """Answers still running are being cut off."""
        self._answers: set[asyncio.Task[Any]] = set()
        self._all_done = asyncio.Event()

    def services(self) -> dict[str, ChatService]:
        """Each served model once, under its first name."""
        found: dict[int, tuple[str, ChatService]] = {}
        for name in self.catalog.names():
            service = self.catalog.get(name)
            found.setdefault(id(service), (name, service))
        return dict(found.values())

    async def check_health(self) -> None:
        """Raises EngineError when requests cannot be served."""
        services = self.services()
        if not services:
            raise EngineDied(self.catalog.awaited or "no model is served yet")
        for service in services.values():
            await service.health()

    def enter(self) -> None:
        """The current task answers a request from now on. Raises ShuttingDown while the server drains."""
        if self.is_draining:
            raise ShuttingDown("the server is shutting down and takes no new requests")
        task = asyncio.current_task()
        assert task is not None
        self._answers.add(task)

    def leave(self) -> None:
        """The current task has answered."""
        task = asyncio.current_task()
        assert task is not None
        self._answers.discard(task)
        if not self._answers:
            self._all_done.set()

    @property
    def num_answers(self) -> int:
        """Requests being answered."""
        return len(self._answers)

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, wait for the running ones, cut off what is left after the timeout."""
        self.is_draining = True
        await self._wait(timeout_s)
        self.cut_off()
        await self._wait(2.0)

    def cut_off(self) -> None:
        """End all running answers with an error."""
        self.is_draining = self.is_stopping = True
        for task in self._answers:
            task.cancel()

    async def _wait(self, timeout_s: float) -> None:
        self._all_done.clear()
        if self._answers:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_done.wait(), timeout_s)


STATE: web.AppKey[State] = web.AppKey("state", State)
RECORD: web.RequestKey[Record] = web.RequestKey("record", Record)


def _no_log(_: dict[str, Any]) -> None:
    return


def _version() -> str:
    try:
        return version("llmrun")
    except PackageNotFoundError:
        return "unknown"
