"""The measuring client against a scripted server: what is counted, timed, refused and survived."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runner.bench.client import HttpTarget, parse_counters
from runner.bench.load import closed_loop
from runner.bench.records import BenchRequest
from runner.errors import EngineError, UsageError
from tests.runner.bench.fake_server import ROLE, STOP, Exchange, FakeServer, text_chunk, usage_chunk

REQUEST = BenchRequest(prompt="hi", max_tokens=3)


async def _good(exchange: Exchange) -> None:
    await exchange.start_stream()
    await exchange.event(ROLE)
    await asyncio.sleep(0.05)
    for text in ("a", "b", "c"):
        await exchange.event(text_chunk(text))
        await asyncio.sleep(0.02)
    await exchange.event(STOP)
    await exchange.event(usage_chunk(7, 5, cached=4))
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def test_counts_are_the_servers_and_the_role_chunk_is_no_text() -> None:
    async with FakeServer(_good) as server:
        target = HttpTarget(server.url, model="m", keep_text=True)
        sample = await target.run(REQUEST)
        await target.close()
    assert sample.error is None
    assert (sample.text, sample.finish) == ("abc", "length")
    assert (sample.prompt_tokens, sample.output_tokens, sample.cached_tokens, sample.is_counted) == (7, 5, 4, True)
    assert sample.first_s is not None and sample.first_s - sample.start_s >= 0.05
    assert len(sample.gaps_s) == 2 and min(sample.gaps_s) >= 0.015


async def test_without_usage_pieces_of_text_are_counted() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.start_stream()
        for event in (ROLE, text_chunk("a"), text_chunk("b"), ending, "[DONE]"):
            await exchange.event(event, separator="\r\n\r\n")
        await exchange.end_stream()

    ending: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    async with FakeServer(handler) as server:
        stopped = await HttpTarget(server.url, model="m").run(REQUEST)
        ending = STOP
        full = await HttpTarget(server.url, model="m").run(REQUEST)
    assert (stopped.output_tokens, stopped.is_counted, stopped.error) == (2, False, None)
    assert (full.output_tokens, full.is_counted) == (REQUEST.max_tokens, True)


async def test_a_head_that_ends_like_a_last_chunk_is_no_end() -> None:
    async def handler(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
        await exchange.send(head)
        await asyncio.sleep(0.02)
        for event in (text_chunk("a"), STOP, usage_chunk(1, 1), "[DONE]"):
            await exchange.event(event)
        await exchange.end_stream()

    async with FakeServer(handler) as server:
        sample = await HttpTarget(server.url, model="m").run(REQUEST)
    assert (sample.error, sample.output_tokens) == (None, 1)


async def test_a_stream_cut_into_single_bytes_reads_the_same() -> None:
    async def handler(exchange: Exchange) -> None:
        class Slow(Exchange):
            async def send(self, data: bytes) -> None:
                for i in range(len(data)):
                    await exchange.send(data[i : i + 1])
                    await asyncio.sleep(0)

        await _good(Slow(exchange.path, exchange.body, exchange._writer))

    async with FakeServer(handler) as server:
        sample = await HttpTarget(server.url, model="m", keep_text=True).run(REQUEST)
    assert (sample.error, sample.text, sample.output_tokens) == (None, "abc", 5)


async def test_connections_are_kept() -> None:
    async with FakeServer(_good) as server:
        target = HttpTarget(server.url, model="m")
        samples = await closed_loop(target, iter([REQUEST] * 6), 2)
        await target.close()
    assert [sample.error for sample in samples] == [None] * 6
    assert server.num_connections == 2


async def test_a_kept_connection_that_the_server_closed_is_replaced() -> None:
    async def handler(exchange: Exchange) -> None:
        if len(server.requests) == 2:
            exchange.drop()
        else:
            await _good(exchange)

    async with FakeServer(handler) as server:
        target = HttpTarget(server.url, model="m")
        samples = [await target.run(REQUEST) for _ in range(2)]
        await target.close()
    assert [sample.error for sample in samples] == [None, None]
    assert (len(server.requests), server.num_connections) == (3, 2)


@pytest.mark.parametrize("reason", ["ends early", "error event", "HTTP error", "drops", "garbage"])
async def test_failures_are_errors_of_the_sample(reason: str) -> None:
    async def handler(exchange: Exchange) -> None:
        if reason == "HTTP error":
            await exchange.reply(503, {"error": {"message": "queue is full", "code": 503}})
            return
        await exchange.start_stream()
        await exchange.event(text_chunk("a"))
        if reason == "drops":
            exchange.drop()
        elif reason == "garbage":
            await exchange.event("{not json")
            await exchange.event("[DONE]")
        elif reason == "error event":
            await exchange.event({"error": {"message": "engine died"}})
        await exchange.end_stream()

    async with FakeServer(handler) as server:
        sample = await HttpTarget(server.url, model="m").run(REQUEST)
    expected = {
        "ends early": "without [DONE]",
        "error event": "engine died",
        "HTTP error": "HTTP 503: queue is full",
        "drops": "closed the connection",
        "garbage": "cannot be read",
    }
    assert sample.error is not None and expected[reason] in sample.error


async def test_a_stalled_server_is_given_up() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.start_stream()
        await asyncio.sleep(30)

    async with FakeServer(handler) as server:
        sample = await HttpTarget(server.url, model="m", timeout_s=0.1).run(REQUEST)
    assert sample.error is not None and "0.1 s" in sample.error


async def test_fields_that_a_server_refuses_are_left_out_and_said() -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.path.endswith("/models"):
            await exchange.reply(200, {"data": [{"id": "theirs"}]})
        elif "ignore_eos" in exchange.body:
            await exchange.reply(400, {"error": {"message": "unknown field: ignore_eos"}})
        else:
            await _good(exchange)

    async with FakeServer(handler) as server:
        target = HttpTarget(server.url + "/v1", extra={"cache_prompt": False})
        notes = await target.prepare()
        await target.run(REQUEST)
        await target.close()
    last = server.requests[-1]
    assert notes == ["the server refuses ignore_eos; it is left out"]
    assert last.path == "/v1/chat/completions"
    assert (last.body["model"], last.body["cache_prompt"], "ignore_eos" in last.body) == ("theirs", False, False)


async def test_no_server_says_where_it_looked() -> None:
    with pytest.raises(EngineError, match=r"no server at 127\.0\.0\.1:9"):
        await HttpTarget("127.0.0.1:9").prepare()


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="ftp"):
        HttpTarget("ftp://x")


def test_counters_are_summed_over_labels() -> None:
    page = '# HELP x\na_total{m="1"} 2\na_total{m="2"} 3\nb_sum 0.5\nc 9\nd_total nonsense\n'
    assert parse_counters(page) == {"a_total": 5.0, "b_sum": 0.5}
