"""Workers and ingresses for tests: in this process around an engine, or as programs that can be killed.

Nothing is faked: the folder store, the planes and the programs are the real ones.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from runner.engines.base import Engine
from runner.engines.remote import RemoteEngine
from runner.engines.remote_pool import Worker, WorkerPool
from runner.frontends.endpoint_answers import TokenAnswers
from runner.frontends.endpoint_streams import EndpointStreams
from runner.net.addresses import Address
from runner.net.client import NetClient
from runner.net.planes import TcpEndpoint
from runner.net.records import Instance
from runner.net.routing import Router
from runner.types import EmbedRequest, EmbedResult, EngineInfo
from tests.runner.net.daemons import free_port

ADDRESS = Address("ns", "pool", "gen")
PREFIX_ENGINE = '''"""The next token follows from the whole prefix: an answer that loses or repeats one goes wrong."""

import asyncio
import os


async def generate(request):
    ids = list(request["token_ids"])
    for _ in range(request["stop_conditions"]["max_tokens"]):
        await asyncio.sleep(float(os.environ.get("TEST_PACE_S", "0.02")))
        ids.append(300 + (sum(ids) * 31 + len(ids)) % 150)
        yield {"token_ids": ids[-1:]}
'''


def prefix_answer(prompt: list[int], num: int) -> list[int]:
    """What PREFIX_ENGINE answers."""
    ids = list(prompt)
    for _ in range(num):
        ids.append(300 + (sum(ids) * 31 + len(ids)) % 150)
    return ids[len(prompt) :]


class InProcess:
    """An Engine over the wire, and the workers behind it, all in this process."""

    def __init__(self, engines: list[Engine], *, migration_limit: int = 0, router: Router | None = None) -> None:
        self.engines, self.limit = engines, migration_limit
        self.client = NetClient("127.0.0.1", "nats://127.0.0.1:1")
        self.pool = WorkerPool(self.client, router or Router("round-robin"))
        self.streams: list[EndpointStreams] = []
        self.endpoints: list[TcpEndpoint] = []
        self.remote: RemoteEngine

    async def start(self) -> EngineInfo:
        await self.client.start()
        info = EngineInfo(name="none")
        for number, engine in enumerate(self.engines, 1):
            info = await engine.start()
            streams = EndpointStreams(TokenAnswers(engine, info, 512))
            endpoint = TcpEndpoint("127.0.0.1", streams.take)
            target = await endpoint.start(f"{number:x}/{ADDRESS.path}")
            instance = Instance(address=ADDRESS, id=number, plane="tcp", target=target, codec="msgpack")
            self.pool.add(Worker(instance, is_own=True, max_running=info.max_running))
            self.streams.append(streams)
            self.endpoints.append(endpoint)
        self.remote = RemoteEngine(
            info, self.client, self.pool, model="toy", about="a test", migration_limit=self.limit
        )
        return await self.remote.start()

    def generate(self, request: Any) -> Any:
        return self.remote.generate(request)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        return await self.remote.embed(request)

    async def health(self) -> None:
        for engine in self.engines:
            await engine.health()
        await self.remote.health()

    async def stats(self) -> dict[str, float]:
        return await self.remote.stats()

    async def close(self) -> None:
        if hasattr(self, "remote"):
            await self.remote.close()
        for streams in self.streams:
            await streams.end()
        for endpoint in self.endpoints:
            await endpoint.close()
        for engine in self.engines:
            await engine.close()
        await self.client.close()


class Program:
    """One `llmrun …` of its own process group, with its stderr in a file."""

    def __init__(self, words: list[str], folder: Path, before: Sequence[str] = (), **env: str) -> None:
        self.log = folder / f"{time.monotonic_ns()}.log"
        command = [*before, sys.executable, "-m", "runner", *words]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, **env}, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    async def until(self, text: str, timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            while text not in self.said:
                assert self.process.poll() is None or text in self.said, self.said
                await asyncio.sleep(0.05)

    def signal(self, number: int) -> None:
        """To the program and its engine: a machine that is gone or frozen."""
        os.killpg(self.process.pid, number)

    def child(self) -> psutil.Process:
        """Its engine's process."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    async def ended(self, timeout_s: float = 20.0) -> int:
        async with asyncio.timeout(timeout_s):
            while self.process.poll() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return int(self.process.returncode)

    def close(self) -> None:
        if self.process.poll() is None:
            for number in (signal.SIGCONT, signal.SIGKILL):
                self.signal(number)
            self.process.wait()


class Cluster:
    """Programs that share a folder store. Use as `async with`."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.flags = flags or ("--store-path", str(folder / "store"))
        self.programs: list[Program] = []
        self.port = free_port()
        self.session: aiohttp.ClientSession

    async def worker(self, *words: str, address: str = "dyn://ns.pool.gen", wait: bool = True, **env: str) -> Program:
        program = Program([f"in={address}", *words, *self.flags], self.folder, **env)
        self.programs.append(program)
        if wait:
            await program.until("Serving ")
        return program

    async def ingress(self, *words: str, out: str = "dyn://ns.pool.gen", num_workers: int = 1) -> Program:
        flags = ["--http-port", str(self.port), *self.flags]
        program = Program(["in=http", f"out={out}", *flags, *words], self.folder)
        self.programs.append(program)
        await program.until("Serving ")
        if num_workers:
            await program.until(f"joins, {num_workers} now")
        return program

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        async with self.session.post(f"http://127.0.0.1:{self.port}{path}", json=body) as response:
            return response.status, await response.json()

    async def complete(self, prompt: list[int], max_tokens: int) -> tuple[str, str]:
        """The text of a completion, and its error if it ends with one."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        status, answer = await self.post("/v1/completions", **body)
        if status != 200:
            return "", str(answer["error"]["message"])
        assert answer["usage"]["completion_tokens"] == max_tokens
        return str(answer["choices"][0]["text"]), ""

    async def __aenter__(self) -> Cluster:
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        for program in self.programs:
            program.close()
