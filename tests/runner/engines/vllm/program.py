"""`llmrun in=http out=vllm` on the demo model as a process, for the tests with the real vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).parents[4]
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}


class Program:
    """The process and a client of it."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, client: aiohttp.ClientSession) -> None:
        self.process, self.url, self.client = process, url, client

    def family(self) -> list[psutil.Process]:
        """Everything that it started and that lives."""
        return [one for one in psutil.Process(self.process.pid).children(recursive=True) if is_alive(one)]

    def core(self) -> psutil.Process:
        """The process with EngineCore, our own child and the largest of them; ranks are its children."""
        children = [one for one in psutil.Process(self.process.pid).children() if is_alive(one)]
        return max(children, key=lambda one: one.memory_info().rss)

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON; a body of bytes is sent as it is."""
        sent = {"data": body, "headers": {"Content-Type": "application/json"}} if isinstance(body, bytes) else None
        async with self.client.post(self.url + path, **(sent or {"json": body})) as response:
            text = await response.text()
            try:
                return response.status, await response.json()
            except (ValueError, aiohttp.ContentTypeError):
                return response.status, text

    async def answer(self) -> str:
        """A known request's answer, always the same. Raises AssertionError for an error."""
        status, body = await self.post("/v1/chat/completions", CHAT)
        assert status == 200, body
        return str(body["choices"][0]["message"]["content"])

    async def stream_end(self, begun: asyncio.Event | None = None) -> tuple[float, bytes]:
        """When a long stream ended (monotonic), and its last bytes. `begun` is set at the first."""
        body = {**CHAT, "stream": True, "max_tokens": 900, "ignore_eos": True}
        last = b""
        with contextlib.suppress(aiohttp.ClientError):
            async with self.client.post(self.url + "/v1/chat/completions", json=body) as response:
                async for line in response.content:
                    last = line.strip() or last
                    if begun is not None:
                        begun.set()
        return time.monotonic(), last


@contextlib.asynccontextmanager
async def running(python: str, *words: str, timeout_s: float = 180) -> AsyncIterator[Program]:
    """Serve while inside; whatever happens, nothing of it is left."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runner", "in=http", "out=vllm", "demo-hf", "--http-port", str(_free_port())),
        *("--engine-python", python, "--threads", "1", "--context-length", "1024", *words),
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    family: list[psutil.Process] = []
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector) as client:
            url = await _url(process, timeout_s)
            draining = asyncio.create_task(_drain(process))
            program = Program(process, url, client)
            family = program.family()
            yield program
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 15)
        for one in (*family, *([psutil.Process(process.pid)] if process.returncode is None else [])):
            with contextlib.suppress(psutil.Error):
                one.kill()
        await process.wait()
    await draining


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def _url(process: asyncio.subprocess.Process, timeout_s: float) -> str:
    assert process.stderr is not None
    said = ""
    async with asyncio.timeout(timeout_s):
        while True:
            line = (await process.stderr.readline()).decode()
            said += line
            assert line, f"it ended before it served:\n{said}"
            if line.startswith("Serving"):
                return line.split(" on ")[1].split("/v1")[0]


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def seconds_until_gone(family: list[psutil.Process], limit_s: float) -> float | None:
    """How long until none of them lives, or None."""
    begin = time.monotonic()
    while time.monotonic() - begin < limit_s:
        if not any(is_alive(one) for one in family):
            return time.monotonic() - begin
        await asyncio.sleep(0.05)
    return None
