"""Clients that leave, clients that are slow, and the server that drains."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import struct
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runner.types import ChatRequest, TextDelta, Usage
from tests.runner.frontends.http_server import CHAT, RunningServer, running
from tests.runner.frontends.scripted import ScriptedService

STREAM = {**CHAT, "stream": True}
CHATS = "/v1/chat/completions"


async def endless(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
    while True:
        await asyncio.sleep(service.delay_s)
        yield TextDelta(text=" x", token_ids=[1])


async def silent(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
    await asyncio.Event().wait()
    yield TextDelta()


def raw_request(body: Any, path: str = CHATS) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def connect(server: RunningServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))


@pytest.mark.parametrize("script", [endless, silent])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompts", [1, 3])
async def test_a_client_that_leaves_frees_its_slot(script: Any, stream: bool, prompts: int) -> None:
    async with running(ScriptedService(script=script, delay_s=0.001)) as server:
        _, writer = await connect(server)
        writer.write(raw_request({"prompt": ["a"] * prompts, "stream": stream}, "/v1/completions"))
        async with asyncio.timeout(5):
            while server.service.num_open < prompts:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        writer.transport.abort()
        async with asyncio.timeout(1):
            while server.service.num_open or not server.log:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert server.service.num_closed_early == prompts
        assert (server.log[-1]["status"], len(server.log)) == (499, 1)
        text = (await server.get("/metrics"))[1]
        assert 'dynamo_frontend_disconnected_clients{model="toy"} 1' in text
        assert 'dynamo_frontend_inflight_requests{model="toy"} 0' in text


async def test_two_hundred_vanishing_clients_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(7)

    async def vanish(server: RunningServer) -> None:
        _, writer = await connect(server)
        data = raw_request({**CHAT, "stream": chance.random() < 0.7})
        writer.write(data[: chance.choice([0, 10, len(data) - 5, len(data), len(data)])])
        await asyncio.sleep(chance.random() * 0.3)
        writer.transport.abort() if chance.random() < 0.5 else writer.close()

    async with running(ScriptedService(script=endless, delay_s=0.002)) as server:
        await server.get("/live")
        before = len(asyncio.all_tasks())
        await asyncio.gather(*(vanish(server) for _ in range(200)))
        await server.until_idle()
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        server.service.script = None
        assert (await server.post(CHATS, CHAT))[0] == 200
        text = (await server.get("/metrics"))[1]
        assert 'dynamo_frontend_inflight_requests{model="toy"} 0' in text
        assert 'dynamo_frontend_queued_requests{model="toy"} 0' in text
    assert not caplog.records


@pytest.mark.parametrize("num_before", [0, 1])
async def test_writing_to_a_client_that_is_gone_is_no_fault(num_before: int, caplog: pytest.LogCaptureFixture) -> None:
    """It resets its connection between two deltas: the writes that follow come before the loop can know."""
    client = socket.socket()

    async def cut(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        for number in range(num_before + 5):
            if number == num_before:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            yield TextDelta(text="a", token_ids=[1])

    async with running(ScriptedService(script=cut)) as server:
        client.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        client.sendall(raw_request(STREAM))
        async with asyncio.timeout(5):
            while not server.log:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await server.until_idle()
        assert server.log[-1]["status"] == 499
    assert not caplog.records


async def test_a_connection_error_of_the_engine_is_not_the_clients() -> None:
    async def fail(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        raise ConnectionResetError("the engine's own")
        yield TextDelta()

    async with running(ScriptedService(script=fail)) as server:
        assert (await server.post(CHATS, CHAT))[0] == 500


async def test_a_slow_reader_holds_the_stream_back() -> None:
    """Nothing may pile up for a client that does not read: the generator is simply not asked for more."""
    num_made = 0

    async def flood(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        nonlocal num_made
        while True:
            num_made += 1
            if num_made % 100 == 0:
                await asyncio.sleep(0)
            yield TextDelta(text="x" * 1000, token_ids=[1])

    async with running(ScriptedService(script=flood)) as server:
        reader, writer = await connect(server)
        writer.write(raw_request(STREAM))
        async with asyncio.timeout(10):
            seen = -1
            while seen != num_made or not num_made:
                seen = num_made
                await asyncio.sleep(0.1)
        assert num_made < 30_000  # what fits into the kernel's buffers, some megabytes
        await reader.readexactly(1_000_000)
        async with asyncio.timeout(10):
            while num_made == seen:
                await reader.readexactly(100_000)
                await asyncio.sleep(0.01)
        writer.transport.abort()
        await server.until_idle()


async def test_drain_lets_answers_end_and_refuses_new_ones() -> None:
    going = asyncio.Event()

    async def held(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        yield TextDelta(text="a", token_ids=[1])
        await going.wait()
        yield TextDelta(text="b", finish="stop", usage=Usage(prompt_tokens=1, completion_tokens=2))

    async with running(ScriptedService(script=held), drain_timeout_s=10) as server:
        await server.get("/live")
        kept = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))
        await (await kept.get(server.url + "/live")).read()
        async with server.client.post(server.url + CHATS, json=STREAM) as response:
            server.stop.ask()
            await asyncio.sleep(0.05)
            async with kept.post(server.url + CHATS, json=CHAT) as refused:
                assert refused.status == 503 and (await refused.json())["error"]["code"] == "shutting_down"
            with pytest.raises(aiohttp.ClientConnectorError):
                await kept.get(server.url + "/live")
            going.set()
            assert (await response.text()).endswith("data: [DONE]\n\n")
        await kept.close()
        async with asyncio.timeout(5):
            await server.task


async def test_what_outlasts_the_drain_is_told_so() -> None:
    async with running(ScriptedService(script=endless, delay_s=0.001), drain_timeout_s=0.1) as server:
        response = await server.client.post(server.url + CHATS, json=STREAM)
        server.service.script = silent
        whole = asyncio.create_task(server.post(CHATS, CHAT))
        async with asyncio.timeout(5):
            while server.service.num_open < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        server.stop.ask()
        text = await response.text()
        assert '"shutting_down"' in text and "[DONE]" not in text
        status, body = await whole
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        await server.task
        assert server.service.num_open == 0


async def test_asking_twice_does_not_wait() -> None:
    async with running(ScriptedService(script=endless, delay_s=0.001), drain_timeout_s=1000) as server:
        response = await server.client.post(server.url + CHATS, json=STREAM)
        server.stop.ask()
        await asyncio.sleep(0.05)
        assert not server.task.done()
        server.stop.ask()
        assert '"shutting_down"' in await response.text()
        async with asyncio.timeout(5):
            await server.task


PROGRAM = """
import asyncio, sys
from runner.catalog import Catalog
from runner.frontends.base import FrontendSpec
from runner.frontends.http import HttpFrontend
from runner.options import RunOptions
from tests.runner.frontends.scripted import ScriptedService
from tests.runner.frontends.test_http_life import endless

async def main():
    catalog = Catalog()
    catalog.add(ScriptedService(script=endless, delay_s=0.01))
    spec = FrontendSpec(name="http", options=RunOptions(http_port=0, drain_timeout_s=0.2))
    return await HttpFrontend(spec).run(catalog)

sys.exit(asyncio.run(main()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_program_says_where_and_ends_by_signal(number: signal.Signals) -> None:
    root = Path(__file__).parents[3]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, stderr=asyncio.subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": "."}
    )
    assert process.stderr is not None
    async with asyncio.timeout(30):
        line = (await process.stderr.readline()).decode()
        assert line.startswith("Serving toy on http://127.0.0.1:")
        url = line.split()[3].removesuffix("/v1")
        async with aiohttp.ClientSession() as client, client.post(url + CHATS, json=STREAM) as response:
            assert await response.content.readline()
            process.send_signal(number)
            assert "shutting_down" in await response.text()
        log = (await process.stderr.read()).decode()
        assert await process.wait() == 0
    (entry,) = map(json.loads, log.splitlines())
    assert (entry["path"], entry["status"], entry["stream"]) == (CHATS, 503, True)
    assert entry["ttft_s"] > 0 and entry["completion_tokens"] > 0 and "ShuttingDown" in entry["error"]
