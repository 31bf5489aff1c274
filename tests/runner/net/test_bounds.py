"""No peer makes us hold more than is allowed: every length is checked when it is announced, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable

import psutil
import pytest
from aiohttp import web

from runner.net import etcd
from runner.net.etcd import EtcdStore
from runner.net.frames import MAX_FRAME_BYTES, encode_frame
from runner.net.planes import TcpEndpoint, TcpRequests, Unreachable
from runner.net.records import Instance
from runner.net.responses import CallHome, StreamBroken
from runner.net.store import StoreUnavailable
from tests.runner.net.cluster import ADDRESS

_HUGE = struct.pack(">QQQ", MAX_FRAME_BYTES, 1, 0)
"""The head of a frame that is one byte too large."""


async def ends(port: int, *sent: bytes) -> bool:
    """Whether the other side ends the connection on what it is sent, before it has come whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for data in sent:
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(0.05 if len(data) < 1000 else 0)  # read by itself
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                return await reader.read(1) == b""
        return True
    finally:
        writer.close()


async def test_the_tcp_request_plane_takes_no_frame_that_is_too_large() -> None:
    endpoint = TcpEndpoint("127.0.0.1", lambda frame, headers: None)
    target = await endpoint.start("path")
    port = int(target.partition("/")[0].rsplit(":", 1)[1])
    head = struct.pack(">H", 4) + b"path" + struct.pack(">H", 2) + b"{}"
    assert await ends(port, head + struct.pack(">I", MAX_FRAME_BYTES + 1))
    await endpoint.close()


@pytest.mark.parametrize("is_known", [False, True])
async def test_the_call_home_plane_takes_no_frame_that_is_too_large(is_known: bool) -> None:
    home = CallHome("127.0.0.1")
    await home.start()
    port = int(home.address.rsplit(":", 1)[1])
    stream = home.expect("json")
    hands = encode_frame(b'{"subject":"%s","stream_type":"response"}' % stream.subject.encode())
    assert await ends(port, *([hands] if is_known else []), _HUGE)
    if is_known:
        with pytest.raises(StreamBroken, match="at most"):
            await stream.take(5)
    await home.close()


async def test_a_stranger_who_calls_home_may_say_little() -> None:
    home = CallHome("127.0.0.1")
    await home.start()
    port = int(home.address.rsplit(":", 1)[1])
    unfinished = struct.pack(">QQQ", 8 << 20, 0, 0)
    assert await ends(port, unfinished, *[bytes(1 << 16)] * 32)
    await home.close()


@contextlib.asynccontextmanager
async def server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object],
) -> AsyncIterator[int]:
    made = await asyncio.start_server(serve, "127.0.0.1", 0)  # type: ignore[arg-type]
    try:
        yield made.sockets[0].getsockname()[1]
    finally:
        made.close()


async def test_an_acknowledgement_that_is_too_large_is_none() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(struct.pack(">I", (1 << 20) + 1))

    async with server(serve) as port:
        requests = TcpRequests()
        instance = Instance(address=ADDRESS, id=1, plane="tcp", target=f"127.0.0.1:{port}/x")
        with pytest.raises(Unreachable, match="ended"):
            await requests.send(instance, b"frame", {})
        await requests.close()


@pytest.mark.parametrize("path", ["range", "watch"])
async def test_an_answer_of_etcd_without_an_end_is_given_up(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "_MAX_ANSWER_BYTES", 1 << 20)

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * (1 << 16))
        return response

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    store = EtcdStore((f"http://127.0.0.1:{runner.addresses[0][1]}",))
    before = psutil.Process().memory_info().rss
    try:
        if path == "range":
            with pytest.raises(StoreUnavailable, match="too long"):
                await store.check("v1/")
        else:
            with pytest.raises(ValueError, match="too long"):
                async for _ in store._events("v1/", 1):
                    pass
    finally:
        await store.close()
        await runner.cleanup()
    assert psutil.Process().memory_info().rss - before < 32 << 20
