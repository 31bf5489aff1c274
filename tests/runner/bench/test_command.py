"""The command: flags, what it refuses, and a whole run against a scripted server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest

from runner.bench import command
from runner.bench.arguments import levels, parse
from runner.errors import UsageError
from tests.runner.bench.fake_server import ROLE, STOP, Exchange, FakeServer, text_chunk, usage_chunk


async def _answer(exchange: Exchange) -> None:
    if exchange.path.endswith("/models"):
        await exchange.reply(200, {"data": [{"id": "fake"}]})
    elif exchange.path == "/metrics":
        await exchange.reply(404, {})
    else:
        await exchange.start_stream()
        for event in (ROLE, text_chunk("a"), text_chunk("b"), STOP, usage_chunk(3, 2), "[DONE]"):
            await exchange.event(event)
        await exchange.end_stream()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server in a thread of its own: the command runs its own event loop."""
    loop, fake = asyncio.new_event_loop(), FakeServer(_answer)
    ready, leave = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with fake:
            ready.set()
            await leave.wait()

    def run() -> None:
        loop.run_until_complete(serve())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    yield fake
    loop.call_soon_threadsafe(leave.set)
    thread.join(10)


def test_a_sweep_prints_one_point_a_level(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", server.url, "--concurrency", "1,3", "--num-requests", "6", "--json", "--repeat", "2"]
    assert command.run(arguments) == 0
    data = json.loads(capsys.readouterr().out)
    assert [(p["load"], p["num_requests"], p["output_tokens"]) for p in data["points"]] == [
        ("1 at once", 6, 12),
        ("3 at once", 6, 12),
    ]
    assert "fake" in data["target"]


def test_an_open_loop_keeps_its_times(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", server.url, "--rate", "50", "--arrival", "constant", "--num-requests", "5"]
    assert command.run(arguments) == 0
    assert "50/s constant" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "0"], "whole numbers from 1"),
        (["--concurrency", "a,b"], "whole numbers from 1"),
        (["--rate", "1", "--trace", "x"], "give one"),
        (["--rate", "-1"], "not above 0"),
        (["--url", "http://x", "model.gguf"], "would not be used"),
        (["--nonsense"], "no such flag: --nonsense"),
        (["--prefix-len", "9", "--input-len", "8"], "--prefix-len 9"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(arguments)


def test_engine_flags_are_those_of_the_run() -> None:
    known, words, given = parse(["out=mocker", "-c", "512", "demo", "--threads", "2", "--num-requests", "3"])
    assert words == ["out=mocker", "demo"]
    assert given == {"context_length": "512", "threads": "2"}
    assert known.num_requests == 3


def test_levels() -> None:
    assert levels("1,8,32") == [1, 8, 32]


@pytest.mark.parametrize("target", ["out=dyn", "out=dyn://a.b.c"])
def test_workers_are_measured_through_their_ingress(target: str) -> None:
    with pytest.raises(UsageError, match=r"in=http out=dyn.*--url"):
        command.run([target])


def test_an_extra_body_must_be_an_object(server: FakeServer) -> None:
    with pytest.raises(UsageError, match="--extra-body"):
        command.run(["--url", server.url, "--extra-body", "[1]"])
