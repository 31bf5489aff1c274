"""Trace ids pass from an HTTP client through ingress and wire to the worker; ids on the wire are never used twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from runner.trace import set_trace, trace_headers
from runner.types import EngineInfo, TokenDelta, TokenRequest
from tests.runner.net.cluster import Cluster, InProcess

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Seen:
    """An engine that notes ids and trace of its requests, which all run until all have come."""

    def __init__(self, num: int) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        self._num, self._all = num, asyncio.Event()

    async def start(self) -> EngineInfo:
        return EngineInfo(name="seen", context_length=512, max_running=64)

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        self.seen.append((request.id, dict(trace_headers())))
        if len(self.seen) == self._num:
            self._all.set()
        await self._all.wait()
        yield TokenDelta([5], "length")

    async def health(self) -> None:
        return None

    async def stats(self) -> dict[str, float]:
        return {}

    async def close(self) -> None:
        return None


async def test_live_requests_under_one_id_have_several_on_the_wire() -> None:
    engine = Seen(16)
    cluster = InProcess([engine])  # type: ignore[list-item]
    await cluster.start()

    async def ask(number: int) -> None:
        set_trace({"x-request-id": f"client-{number}", "traceparent": PARENT, "cookie": "secret"})
        async with asyncio.timeout(10), aclosing(cluster.generate(TokenRequest(id="same", token_ids=[1]))) as stream:
            assert [delta.token_ids async for delta in stream] == [[5]]

    try:
        await asyncio.gather(*(ask(number) for number in range(16)))
    finally:
        await cluster.close()
    ids, traces = zip(*engine.seen, strict=True)
    assert len(set(ids)) == 16 and all(one.startswith("same-") for one in ids)
    assert sorted(trace["x-request-id"] for trace in traces) == sorted(f"client-{number}" for number in range(16))
    assert {trace["traceparent"] for trace in traces} == {PARENT}
    assert not any("cookie" in trace for trace in traces)


@pytest.mark.parametrize("value", ["a\r\nx: y", "", "a" * 513, " a", "\u00e9"])
async def test_what_cannot_stand_in_a_header_is_left_out(value: str) -> None:
    set_trace({"x-request-id": value, "traceparent": PARENT})
    assert trace_headers() == {"traceparent": PARENT}


async def test_the_workers_log_names_the_clients_request(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        worker = await cluster.worker("out=echo_core", "demo", "-v")
        await cluster.ingress()
        url, body = f"http://127.0.0.1:{cluster.port}/v1/completions", {"prompt": "hello", "max_tokens": 2}
        headers = {"X-Request-Id": "find-me-7", "traceparent": PARENT}
        async with cluster.session.post(url, json=body, headers=headers) as response:
            assert (response.status, response.headers["X-Request-Id"]) == (200, "find-me-7")
        await worker.until(f"x-request-id find-me-7, traceparent {PARENT}")
