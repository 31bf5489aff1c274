"""--http-workers: several processes, one port, one engine; replaced when they die, gone when the parent is."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runner.catalog import Catalog
from runner.errors import UsageError
from runner.frontends.base import FrontendSpec
from runner.frontends.http import HttpFrontend
from runner.frontends.http.listen import bind
from runner.frontends.http.shared_metrics import SharedMetrics, file_of, keep_counters
from runner.metrics import Registry, render
from runner.options import RunOptions
from tests.runner.frontends.scripted import ScriptedService

ROOT = Path(__file__).parents[3]
WORKER = "runner.frontends.http.worker"
PROMPT = {"prompt": "Once upon a time", "max_tokens": 4}


class Program:
    """`llmrun in=http out=mocker --http-workers 2` as a process."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, client: aiohttp.ClientSession) -> None:
        self.process, self.url, self.client = process, url, client

    def workers(self) -> list[psutil.Process]:
        """The worker processes that live."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if is_alive(child) and WORKER in child.cmdline()]

    async def ask(self, **fields: Any) -> int:
        """One request on a connection of its own, so that the kernel chooses a worker; returns its status."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.post(self.url + "/v1/completions", json={**PROMPT, **fields}) as response,
        ):
            await response.read()
            return response.status

    async def num_requests(self) -> float:
        """dynamo_frontend_requests_total, from whichever worker answers."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.get(self.url + "/metrics") as response,
        ):
            families = text_string_to_metric_families(await response.text())
            name = "dynamo_frontend_requests_total"
            return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@pytest.fixture
async def program(shared_data: Path) -> AsyncIterator[Program]:
    model = shared_data / "models" / "stories260k.f16.gguf"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runner", "in=http", "out=mocker", str(model)),
        *("--http-workers", "2", "--http-port", str(free_port())),
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as client:
            line = ""
            while not line.startswith("Serving"):
                line = (await process.stderr.readline()).decode()
                assert line, "it ended before it served"
            url = line.split(" on ")[1].split("/v1")[0]
            draining = asyncio.create_task(process.stderr.read())
            yield Program(process, url, client)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await draining


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    with bind("127.0.0.1", 0) as sock:
        return int(sock.getsockname()[1])


async def until(claim: Any, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not await claim():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_workers_share_port_engine_and_metrics(program: Program) -> None:
    assert len(program.workers()) == 2
    statuses = await asyncio.gather(*(program.ask() for _ in range(20)))
    assert statuses == [200] * 20

    async def all_counted() -> bool:
        return await program.num_requests() == 20

    await until(all_counted)
    await asyncio.sleep(1)  # counts of a worker are kept once it has shared them, every half second
    victim, other = program.workers()
    victim.kill()

    async def replaced() -> bool:
        now = {worker.pid for worker in program.workers()}
        return len(now) == 2 and victim.pid not in now and other.pid in now

    await until(replaced)
    # A connection that the dead one had not accepted yet is lost; those after it are not.
    await until(all_counted)

    async def all_answered() -> bool:
        return [await program.ask() for _ in range(6)] == [200] * 6

    await until(all_answered)
    program.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(15):
        assert await program.process.wait() == 0
    assert not other.is_running()


async def test_ctrl_c_drains_and_a_second_one_hurries(program: Program) -> None:
    workers = program.workers()
    asked = {**PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}
    async with program.client.post(program.url + "/v1/completions", json=asked) as response:
        assert await response.content.readline()
        program.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.2)
        assert program.process.returncode is None
        program.process.send_signal(signal.SIGINT)
        assert "shutting_down" in await response.text()
    async with asyncio.timeout(15):
        assert await program.process.wait() == 0
    assert not any(worker.is_running() for worker in workers)


async def test_workers_end_with_a_parent_that_is_killed(program: Program) -> None:
    workers = program.workers()
    program.process.kill()
    await program.process.wait()

    async def all_gone() -> bool:
        return not any(map(is_alive, workers))

    await until(all_gone, within_s=3)


async def test_an_engine_inside_the_launcher_cannot_be_shared() -> None:
    catalog = Catalog()
    catalog.add(ScriptedService())
    frontend = HttpFrontend(FrontendSpec(name="http", options=RunOptions(http_workers=2, http_port=0)))
    with pytest.raises(UsageError, match="out=scripted"):
        await frontend.run(catalog)


def test_what_a_dead_worker_counted_is_kept(tmp_path: Path) -> None:
    dead, alive = Registry(), Registry()
    for registry in (dead, alive):
        registry.counter("a_total", "A").of().add(3)
        registry.gauge("b", "B").of().set(2)
    for pid in (1, 2):
        SharedMetrics(tmp_path, dead)._write()
        file_of(tmp_path, os.getpid()).rename(file_of(tmp_path, pid))
    shared = SharedMetrics(tmp_path, alive)
    assert "a_total 9" in render(shared.snapshot_all()) and "b 6" in render(shared.snapshot_all())
    keep_counters(tmp_path, 1)
    keep_counters(tmp_path, 2)
    assert "a_total 9" in render(shared.snapshot_all()) and "b 2" in render(shared.snapshot_all())
