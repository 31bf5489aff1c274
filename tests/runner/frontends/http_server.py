"""A running HTTP frontend for tests: in this process, on a free port, over a ScriptedService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from runner.catalog import Catalog
from runner.frontends.http.listen import bind, url_of
from runner.frontends.http.server import Stop, serve
from runner.frontends.http.state import State
from runner.options import RunOptions
from tests.runner.frontends.scripted import ScriptedService

CHAT = {"messages": [{"role": "user", "content": "one two three"}]}


class RunningServer:
    """The server, its service and a client session."""

    def __init__(self, service: ScriptedService, state: State, stop: Stop, url: str) -> None:
        self.service, self.state, self.stop, self.url = service, state, stop, url
        self.client: aiohttp.ClientSession
        self.task: asyncio.Task[None]
        self.log: list[dict[str, Any]] = []

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, Any]:
        """Status and JSON."""
        async with self.client.post(self.url + path, json=body, **options) as response:
            return response.status, await response.json()

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        """Status and JSON, or text."""
        async with self.client.get(self.url + path, **options) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.text())

    async def until_idle(self) -> None:
        """Wait until no answer runs."""
        async with asyncio.timeout(10):
            while self.state.num_answers or self.service.num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(service: ScriptedService | None = None, **options: Any) -> AsyncIterator[RunningServer]:
    """Serve while inside."""
    service = service or ScriptedService()
    catalog = Catalog()
    catalog.add(service)
    state = State(catalog, RunOptions(**options))
    sock = bind("127.0.0.1", 0)
    stop, ready = Stop(), asyncio.Event()
    server = RunningServer(service, state, stop, url_of(sock, tls=False))

    def start_log() -> None:
        state.log = server.log.append
        ready.set()

    serving = serve(state, sock, stop, drain_timeout_s=state_drain(options), on_ready=start_log)
    server.task = asyncio.create_task(serving)
    await ready.wait()
    try:
        async with aiohttp.ClientSession() as server.client:
            yield server
    finally:
        if not server.task.done():
            stop.ask()
        async with asyncio.timeout(10):
            await server.task


def state_drain(options: dict[str, Any]) -> float:
    """The drain timeout of a test server: short unless asked."""
    return float(options.get("drain_timeout_s", 0.2))
