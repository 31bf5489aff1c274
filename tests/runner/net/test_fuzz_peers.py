"""Servers that are none, at our clients: a worker's acknowledgements, an ingress' control frames, a NATS (see
test_fuzz_sockets.py, which has the sizes)."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from runner.net import planes
from runner.net.answers import open_response
from runner.net.frames import encode_frame
from runner.net.planes import NatsRequests, Refused, TcpRequests, TooLarge, Unreachable
from runner.net.records import Instance
from tests.runner.net.cluster import ADDRESS
from tests.runner.net.mutations import Mutator
from tests.runner.net.test_fuzz_sockets import TIMEOUT_S, bounded, sizes, spread


@contextlib.asynccontextmanager
async def tcp_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server on a free port, whose every connection ends with `serve`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)  # cancelled: the test is over
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("num", sizes(0.05))
async def test_acknowledgements_of_a_worker_that_is_none(num: int) -> None:
    mutator = Mutator(3)
    seeds = (struct.pack(">I", 0), struct.pack(">I", 4) + b"full", struct.pack(">I", 0) * 2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(mutator.bytes(mutator.rng.choice(seeds)))
        await writer.drain()

    outcomes: collections.Counter[str] = collections.Counter()
    async with tcp_server(serve) as port:
        instance = Instance(address=ADDRESS, id=1, plane="tcp", target=f"127.0.0.1:{port}/x")

        async def one(_: Mutator) -> None:
            requests = TcpRequests()
            try:
                await requests.send(instance, b"frame", {})
                outcomes["taken"] += 1
            except (Unreachable, Refused) as error:
                outcomes[type(error).__name__] += 1
            finally:
                await requests.close()

        with bounded("acknowledgements", num):
            await spread(num, one)
    print(dict(outcomes))
    assert set(outcomes) == {"taken", "Unreachable", "Refused"}, outcomes


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("num", sizes(0.04))
async def test_control_frames_of_an_ingress_that_is_none(num: int) -> None:
    mutator = Mutator(4)
    stop = encode_frame(b'"stop"')

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(mutator.bytes(stop * mutator.rng.randrange(1, 3)))
        await writer.drain()

    async with tcp_server(serve) as port:

        async def one(_: Mutator) -> None:
            with contextlib.suppress(ConnectionError):
                writer = await open_response({"address": f"127.0.0.1:{port}", "subject": "s"}, "json")
                await writer.accept()
                async with asyncio.timeout(10):
                    await writer.stopped.wait()
                await writer.close(linger=False)

        with bounded("control frames", num):
            await spread(num, one)


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("num", sizes(0.003))
async def test_a_server_that_is_no_nats(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "ACK_S", 0.3)
    mutator = Mutator(5)
    info = b'INFO {"server_id":"x","version":"2.10","headers":true,"max_payload":1048576,"proto":1}\r\n'

    def maybe(data: bytes, share: float) -> bytes:
        return mutator.bytes(data) if mutator.rng.random() < share else data

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(maybe(info, 0.3))
        await reader.readuntil(b"PING\r\n")
        writer.write(maybe(b"PONG\r\n", 0.3))
        said = b""
        while data := await reader.read(4096):
            said += data
            if found := re.search(rb"PUB \S+ (\S+) ", said):
                seed = mutator.rng.choice((b"MSG %b 1 0\r\n\r\n", b"MSG %b 1 4\r\nfull\r\n")) % found[1]
                writer.write(maybe(seed, 0.7))
                await writer.drain()
                return

    outcomes: collections.Counter[str] = collections.Counter()
    async with tcp_server(serve) as port:
        instance = Instance(address=ADDRESS, id=1, plane="nats_tcp", target="ns_pool.gen-1")

        async def one(_: Mutator) -> None:
            requests = NatsRequests(f"nats://127.0.0.1:{port}")
            try:
                async with asyncio.timeout(30):
                    await requests.send(instance, b"frame", {})
                outcomes["taken"] += 1
            except (Unreachable, Refused, TooLarge) as error:
                outcomes[type(error).__name__] += 1
            finally:
                await requests.close()

        with bounded("a NATS that is none", num):
            await spread(num, one)
    print(dict(outcomes))
    assert num < 100 or {"taken", "Unreachable", "Refused"} <= set(outcomes), outcomes
