"""Mutated bytes over real sockets: request planes, acknowledgements, call-home plane and its control frames, servers
that pose as etcd, NATS or a worker's card server. What is right is served right after it, and memory stays bounded.

Everyday 1,500 inputs; `-m fuzz` 100,000 (LLMRUN_FUZZ_SOCKETS: as many). The decoders alone have a test of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import psutil
import pytest
from aiohttp import web
from blake3 import blake3

from model_cards.card import ModelCard, TokenizerRef
from model_cards.errors import CardError
from runner.engines import echo
from runner.engines.base import Engine, EngineOptions, EngineSpec
from runner.frontends.endpoint_answers import TokenAnswers
from runner.frontends.endpoint_streams import EndpointStreams
from runner.net.card_files import CardFile, OwnCard, fetch_card
from runner.net.etcd import EtcdStore
from runner.net.frames import encode_frame
from runner.net.messages import encode_request
from runner.net.nats_connection import connect_nats
from runner.net.planes import NatsEndpoint
from runner.net.records import RecordError
from runner.net.responses import StreamBroken, StreamRefused
from runner.net.store import StoreUnavailable
from runner.types import EngineInfo, TokenRequest
from tests.runner.net import daemons
from tests.runner.net.cluster import ADDRESS, InProcess
from tests.runner.net.mutations import Mutator

NUM = int(os.environ.get("LLMRUN_FUZZ_SOCKETS", "100000"))
TIMEOUT_S = 400 + NUM // 100
_LEAK_BYTES = 64 << 20
_AT_ONCE = 16
CARD = ModelCard(name="toy", source="toy", vocab_size=512, context_length=4096, eos_token_ids=(2,))
REQUEST = TokenRequest(id="r", token_ids=[5, 6, 7], max_tokens=3)
ANSWER = [5, 6, 7]


def sizes(share: float) -> list[object]:
    """Everyday and in full, of the whole of this file."""
    everyday, full = max(1, int(1500 * share)), max(1, int(NUM * share))
    return [pytest.param(everyday, id="everyday"), pytest.param(full, id="full", marks=pytest.mark.fuzz)]


def _engine() -> Engine:
    return echo.make_core(EngineSpec(name="echo_core", card=CARD, options=EngineOptions(start_timeout_s=30)))


@pytest.fixture
async def cluster() -> AsyncIterator[InProcess]:
    made = InProcess([_engine()])
    await made.start()
    yield made
    await made.close()


@contextlib.contextmanager
def bounded(what: str, num: int) -> Iterator[None]:
    """No more memory at the end than a fraction of what went through."""
    process = psutil.Process()
    before = process.memory_info().rss
    logging.disable()  # pytest keeps every line that is logged
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
    after = process.memory_info().rss
    print(f"\n{what}: {num:,} inputs, {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after")
    assert after - before < _LEAK_BYTES


async def served_right(cluster: InProcess) -> None:
    ids: list[int] = []
    async with asyncio.timeout(10), aclosing(cluster.generate(REQUEST)) as stream:
        async for delta in stream:
            ids += delta.token_ids
    assert ids == ANSWER


async def send(host: str, port: int, data: bytes) -> None:
    """One connection; returns when the other side has ended it."""
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(data)
            writer.write_eof()
            async with asyncio.timeout(20):
                await reader.read()
        finally:
            writer.close()


async def spread(num: int, one: Callable[[Mutator], Awaitable[None]]) -> None:
    """`one` so many times, several at once, each with mutations of its own."""

    async def some(seed: int) -> None:
        mutator = Mutator(seed)
        for _ in range(-(-num // _AT_ONCE)):
            await one(mutator)

    await asyncio.gather(*(some(seed) for seed in range(_AT_ONCE)))


def request_frame(cluster: InProcess, mutator: Mutator) -> bytes:
    """A request whose parts may be wrong while its checksum is right. The address stays: nobody else is called."""
    control = {"id": "x", "request_type": "single_in", "response_type": "many_out", "payload_codec": "json"}
    home = {"address": cluster.client._home.address, "subject": "nobody", "context": "x", "stream_type": "response"}
    body = msgspec.json.encode(encode_request(REQUEST, "toy", (2,), ""))
    if mutator.rng.random() < 0.5:
        control = mutator.tree(control)
    if mutator.rng.random() < 0.7:
        body = mutator.bytes(body)
    if isinstance(control, dict):
        control = {
            **control,
            "connection_info": {"transport": "tcp_server", "info": msgspec.json.encode(home).decode()},
        }
    return encode_frame(msgspec.json.encode(control), body)


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("num", sizes(0.43))
async def test_the_tcp_request_plane(cluster: InProcess, num: int) -> None:
    (worker,) = cluster.pool.workers
    where, _, path = worker.instance.target.partition("/")
    host, port = where.rsplit(":", 1)

    async def one(mutator: Mutator) -> None:
        frame = request_frame(cluster, mutator)
        head = msgspec.json.encode({"x-endpoint-path": path, "x-request-id": "y"})
        parts = struct.pack(">H", len(path)), path.encode(), struct.pack(">H", len(head)), head
        message = b"".join((*parts, struct.pack(">I", len(frame)), frame))
        if mutator.rng.random() < 0.5:
            message = mutator.bytes(message[: len(message) - len(frame)]) + frame
        await send(host, int(port), message)

    with bounded("TCP request plane", num):
        await spread(num, one)
        await served_right(cluster)
    async with asyncio.timeout(20):
        while cluster.streams[0].num_open:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("num", sizes(0.3))
async def test_the_call_home_plane(cluster: InProcess, num: int) -> None:
    home = cluster.client._home
    host, port = home.address.rsplit(":", 1)
    item = msgspec.json.encode({"data": {"data": {"token_ids": [1]}}, "complete_final": False})
    last = msgspec.json.encode({"data": None, "complete_final": True})

    async def one(mutator: Mutator) -> None:
        stream = home.expect("json")
        hands = encode_frame(msgspec.json.encode({"subject": stream.subject, "stream_type": "response"}))
        prologue, sentinel = encode_frame(b'{"error":null}'), encode_frame(b'"sentinel"')
        if mutator.rng.random() < 0.5:
            body = encode_frame(b"", mutator.bytes(item))
        else:
            body = mutator.bytes(encode_frame(b"", item))
        said = prologue + encode_frame(b"", item) + body + encode_frame(b"", last) + sentinel
        data = hands + said if mutator.rng.random() < 0.8 else mutator.bytes(hands + said)
        await send(host, int(port), data)
        try:
            while await stream.take(0.05):
                pass
        except (StreamBroken, StreamRefused, TimeoutError):
            pass
        finally:
            stream.close()

    with bounded("call-home plane", num):
        await spread(num, one)
        await served_right(cluster)
    assert not home._expected


@pytest.mark.dist
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("num", sizes(0.08))
async def test_messages_through_nats(cluster: InProcess, num: int) -> None:
    daemon = daemons.nats()
    daemon.start()
    url = f"nats://127.0.0.1:{daemon.port}"
    engine = _engine()
    streams = EndpointStreams(TokenAnswers(engine, await engine.start(), 512))
    endpoint = NatsEndpoint(url, streams.take)
    connection = None
    try:
        subject = await endpoint.start(ADDRESS.subject(5))
        connection = await connect_nats(url)

        async def one(mutator: Mutator) -> None:
            data = request_frame(cluster, mutator)
            if mutator.rng.random() < 0.5:
                data = mutator.bytes(data)
            headers = {
                "x-llmrun-deadline": mutator.rng.choice(["", "nan", "inf", "-1", "9e99", "x"]),
                "x-request-id": "y",
            }
            await connection.request(subject, data, timeout=10, headers=headers)  # each is answered

        with bounded("NATS subject", num):
            await spread(num, one)
            await served_right(cluster)
        assert streams.refusal is None
    finally:
        if connection is not None:
            await connection.close()
        await streams.end()
        await endpoint.close()
        await engine.close()
        daemon.kill()


@contextlib.asynccontextmanager
async def http_server(answer: Callable[[str], bytes]) -> AsyncIterator[str]:
    """A real HTTP server that answers every path with what it is told."""

    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=answer(request.path), content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


_ETCD = {
    "range": b'{"header":{"revision":"3"},"kvs":[{"key":"azE=","value":"dg==","lease":"5"}],"count":"1"}',
    "timetolive": b'{"result":{"TTL":"9"},"ID":"77","TTL":"3","grantedTTL":"10"}',
    "watch": b'{"result":{"header":{"revision":"3"},"events":[{"kv":{"key":"azE=","value":"dg==","lease":"5"}}]}}\n',
}


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("num", sizes(0.05))
async def test_answers_of_etcd(num: int) -> None:
    mutator, is_good = Mutator(1), False

    def answer(path: str) -> bytes:
        data = _ETCD.get(path.rsplit("/", 1)[1], b"{}")
        return data if is_good else mutator.bytes(data)

    async with http_server(answer) as url:
        store = EtcdStore((url,))
        try:
            with bounded("etcd's answers", num):
                for _ in range(num // 3 + 1):
                    with contextlib.suppress(StoreUnavailable):
                        assert all(isinstance(entry.value, bytes) for entry in await store.entries("k"))
                    with contextlib.suppress(ValueError, OSError):
                        async with aclosing(store._events("k", 4)) as events:
                            assert all([isinstance(change.key, str) async for change in events])
            is_good = True
            (entry,) = await store.entries("k")
            assert (entry.key, entry.value, entry.lease_s) == ("k1", b"v", 10.0)
        finally:
            await store.close()


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("num", sizes(0.05))
async def test_files_of_a_card(num: int, tmp_path: Path) -> None:
    good, mutator, is_good = random.Random(3).randbytes(2000), Mutator(2), False

    def answer(path: str) -> bytes:
        if is_good:
            return good
        while (bad := mutator.bytes(good)) == good:
            pass
        return bad

    async with http_server(answer) as url:
        card = msgspec.structs.replace(CARD, tokenizer=TokenizerRef(kind="hf", path="tokenizer.json"))
        file = CardFile(url=f"{url}/f", blake3=blake3(good).hexdigest(), size=len(good))
        own = OwnCard(card=card.to_json(), info=EngineInfo(name="x"), files={"tokenizer.json": file})
        with bounded("card files", num):
            for number in range(num):
                with contextlib.suppress(RecordError, CardError):
                    await fetch_card(own, tmp_path / "bad")
                    raise AssertionError(f"mutation {number} was taken")
        assert not [path for path in (tmp_path / "bad").rglob("*") if path.is_file()]
        is_good = True
        fetched = await fetch_card(own, tmp_path / "good")
        assert fetched.tokenizer is not None and Path(fetched.tokenizer.path).read_bytes() == good
