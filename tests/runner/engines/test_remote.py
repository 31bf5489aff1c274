"""out=dyn over the real wire, with workers in this process: the rules of streams, retries, migration, refusals."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from model_cards.card import ModelCard
from runner.engines import echo, mocker
from runner.engines.base import Engine, EngineOptions, EngineSpec
from runner.engines.remote_pool import Worker
from runner.errors import EngineBusy, EngineDied, EngineFailed, RequestError, UnsupportedField
from runner.net.routing import Router
from runner.types import EngineInfo, GuidedDecoding, SamplingParams, TokenDelta, TokenRequest
from tests.conformance import CHECKS, Check, EngineCase, run_check
from tests.runner.net.cluster import InProcess, prefix_answer

CARD = ModelCard(name="toy", source="toy", vocab_size=512, context_length=4096, eos_token_ids=(2,))
PROMPTS = [list(range(start, start + 300)) for start in (10, 60, 200)]
FAST = {"decode_base_us": 1000.0, "prefill_us_per_token": 1.0}


def _spec(name: str, extra: dict[str, Any] | None = None, **limits: int) -> EngineSpec:
    options = EngineOptions(extra=extra or {}, start_timeout_s=30, **limits)  # type: ignore[arg-type]
    return EngineSpec(name=name, card=CARD, options=options)


def _echo(**limits: int) -> Engine:
    return InProcess([echo.make_core(_spec("echo_core", **limits))])


def _mocker(**limits: int) -> Engine:
    return InProcess([mocker.make_engine(_spec("mocker", extra=FAST, **limits))])


CASES = [
    EngineCase(name="dyn/echo_core", make=_echo, prompts=PROMPTS, honours=frozenset({"stop", "min_tokens"})),
    EngineCase(
        name="dyn/mocker",
        make=_mocker,
        prompts=PROMPTS,
        honours=frozenset({"stop", "min_tokens", "max_running", "seed"}),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, case: EngineCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_TOKEN_ECHO_DELAY_MS", "1")
    await run_check(check, case)


class Prefix:
    """Answers by the whole prefix (prefix_answer); fails as told, after `fail_after` tokens of an attempt."""

    def __init__(self, fail_after: int | None = None, error: Exception | None = None) -> None:
        self.fail_after, self.error = fail_after, error or EngineDied("the engine is gone")
        self.num_calls = 0
        self.num_open = 0

    async def start(self) -> EngineInfo:
        return EngineInfo(name="prefix", context_length=4096, max_running=8, capabilities=("temperature",))

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        self.num_calls += 1
        self.num_open += 1
        try:
            for at, token_id in enumerate(prefix_answer(request.token_ids, request.max_tokens)):
                if at == self.fail_after:
                    raise self.error
                await asyncio.sleep(0.001)
                is_last = at + 1 == request.max_tokens
                yield TokenDelta([token_id], "length" if is_last else None, None, None, 0)
        finally:
            self.num_open -= 1

    async def embed(self, request: Any) -> Any:
        raise UnsupportedField("none")

    async def health(self) -> None: ...

    async def stats(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...


def _request(num: int = 40, **sampling: Any) -> TokenRequest:
    return TokenRequest(
        id="r1", token_ids=[1, 2, 3], max_tokens=num, sampling=SamplingParams(**{"temperature": 0.0, **sampling})
    )


async def _ids(cluster: InProcess, request: TokenRequest) -> list[int]:
    ids: list[int] = []
    async with asyncio.timeout(20), aclosing(cluster.generate(request)) as stream:
        async for delta in stream:
            ids += delta.token_ids
    return ids


async def _with(engines: list[Any], request: TokenRequest, migration_limit: int = 0) -> tuple[list[int], InProcess]:
    cluster = InProcess(engines, migration_limit=migration_limit)
    await cluster.start()
    try:
        return await _ids(cluster, request), cluster
    finally:
        await cluster.close()


async def test_before_the_first_token_every_worker_is_tried() -> None:
    engines = [*(Prefix(fail_after=0) for _ in range(5)), Prefix()]
    ids, cluster = await _with(engines, _request())
    assert ids == prefix_answer([1, 2, 3], 40)
    assert [engine.num_calls for engine in engines] == [1] * 6
    assert sum(worker.down is not None for worker in cluster.pool.workers) == 5


async def test_a_busy_worker_is_left_for_another_and_is_not_down() -> None:
    ids, cluster = await _with([Prefix(0, EngineBusy("queue is full")), Prefix()], _request())
    assert ids == prefix_answer([1, 2, 3], 40)
    assert all(worker.down is None for worker in cluster.pool.workers)
    with pytest.raises(EngineBusy, match="queue is full"):
        await _with([Prefix(0, EngineBusy("queue is full"))], _request())


async def test_a_worker_that_takes_a_request_and_dies_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.net.client.CALL_HOME_S", 60.0)

    async def take_and_die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        server.close()
        writer.write(bytes(4))
        writer.close()

    server = await asyncio.start_server(take_and_die, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    cluster = InProcess([Prefix()])
    await cluster.start()
    well = cluster.pool.workers[0]
    dying = msgspec.structs.replace(well.instance, id=0, target=f"{host}:{port}/0/x")
    cluster.pool.add(Worker(dying, is_own=True, max_running=8))
    try:
        assert await _ids(cluster, _request()) == prefix_answer([1, 2, 3], 40)
        assert [worker.num_requests for worker in cluster.pool.workers] == [1, 1]
        assert not any(worker.streams for worker in cluster.pool.workers)
    finally:
        await cluster.close()


async def test_a_broken_answer_goes_on_elsewhere_without_a_lost_or_doubled_token() -> None:
    engines = [Prefix(fail_after=7), Prefix(fail_after=9), Prefix()]
    ids, _ = await _with(engines, _request(), migration_limit=2)
    assert ids == prefix_answer([1, 2, 3], 40)
    with pytest.raises(EngineDied, match=r"after 16 tokens of the answer.*--migration-limit \(now 1\)"):
        await _with([Prefix(fail_after=7), Prefix(fail_after=9), Prefix(fail_after=9)], _request(), migration_limit=1)


async def test_a_pool_that_flaps_does_not_hold_an_answer_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.engines.remote._PATIENCE_S", 0.6)
    monkeypatch.setattr("runner.engines.remote_pool._PROBE_EVERY_S", 60.0)
    cluster = InProcess([Prefix(fail_after=7)], migration_limit=2)
    await cluster.start()

    async def flap() -> None:
        while True:
            cluster.pool._notify()
            await asyncio.sleep(0.05)

    flapping = asyncio.create_task(flap())
    try:
        with pytest.raises(EngineDied, match="no other worker can go on"):
            async with asyncio.timeout(5):
                await _ids(cluster, _request())
    finally:
        flapping.cancel()
        await cluster.close()


async def test_an_answer_that_depends_on_more_than_its_tokens_does_not_move() -> None:
    class Guided(Prefix):
        async def start(self) -> EngineInfo:
            return EngineInfo(
                name="p", context_length=4096, capabilities=("temperature", "guided.regex", "presence_penalty", "seed")
            )

    for sampling in (
        {"guided": GuidedDecoding(regex="a*")},
        {"presence_penalty": 1.0},
        {"seed": 7, "temperature": 0.5},
    ):
        with pytest.raises(EngineDied, match="guided, penalised or seeded"):
            await _with([Guided(fail_after=3), Guided()], _request(**sampling), migration_limit=3)


async def test_what_is_the_requests_fault_is_not_tried_again() -> None:
    engines = [Prefix(0, RequestError("no such thing")), Prefix(0, RequestError("no such thing"))]
    with pytest.raises(RequestError, match="no such thing"):
        await _with(engines, _request())
    assert sum(engine.num_calls for engine in engines) == 1
    with pytest.raises(EngineFailed, match="out of luck"):
        await _with([Prefix(3, EngineFailed("out of luck")), Prefix()], _request(), migration_limit=3)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"token_ids": [600]}, "outside of 0 to 511"),
        ({"token_ids": [-1]}, "cannot be read"),
        ({"token_ids": []}, "is empty"),
        ({"max_tokens": 5000}, "the context has 4,096"),
        ({"sampling": SamplingParams(top_k=3)}, "does not honour top_k"),
    ],
)
async def test_a_worker_refuses_what_no_pipeline_has_checked(changes: dict[str, Any], error: str) -> None:
    fields = {"id": "x", "token_ids": [1], "max_tokens": 4, **changes}
    with pytest.raises(RequestError, match=error):
        await _with([Prefix()], TokenRequest(**fields))


async def test_a_draining_worker_is_left_and_found_well_again_by_a_probe() -> None:
    cluster = InProcess([Prefix(), Prefix()])
    await cluster.start()
    try:
        cluster.streams[0].refusal = "the worker is shutting down"
        for _ in range(4):
            assert await _ids(cluster, _request()) == prefix_answer([1, 2, 3], 40)
        assert [worker.down for worker in cluster.pool.workers] == ["the worker is shutting down", None]
        cluster.streams[0].refusal = None
        async with asyncio.timeout(5):
            while cluster.pool.workers[0].down is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        await cluster.close()


async def test_nobody_there_is_said_with_what_was_looked_for() -> None:
    cluster = InProcess([])
    await cluster.start()
    try:
        with pytest.raises(EngineBusy, match=r"no worker serves toy now \(a test\)"):
            await _ids(cluster, _request())
    finally:
        await cluster.close()


async def test_closing_a_stream_frees_the_worker_and_the_books() -> None:
    engine = Prefix()
    cluster = InProcess([engine])
    await cluster.start()
    try:
        async with aclosing(cluster.generate(_request(2000))) as stream:
            await anext(stream)
        async with asyncio.timeout(2):
            while engine.num_open or cluster.streams[0].num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        (worker,) = cluster.pool.workers
        assert (worker.num_running, worker.unread_blocks, worker.down, worker.streams) == (0, 0, None, set())
    finally:
        await cluster.close()


async def _cached_share(mode: str) -> float:
    """Of the prompt tokens of a load with 32 shared prefixes, on four workers that can each keep nine."""
    extra = {**FAST, "block_size": 16, "num_gpu_blocks": 400}
    engines = [mocker.make_engine(_spec("mocker", extra=extra)) for _ in range(4)]
    cluster = InProcess(engines, router=Router(mode, block_size=16))
    await cluster.start()
    cached = total = 0

    async def ask(number: int) -> None:
        nonlocal cached, total
        prefix = [10 + (number % 32) * 7 + at % 200 for at in range(640)]
        prompt = [*prefix, *(300 + number % 150 for _ in range(32))]
        total += len(prompt)
        request = TokenRequest(id=f"r{number}", token_ids=prompt, max_tokens=2)
        async with asyncio.timeout(20), aclosing(cluster.generate(request)) as stream:
            async for delta in stream:
                cached += delta.cached_tokens or 0

    try:
        order = random.Random(7).sample(range(192), 192)
        for at in range(0, 192, 8):
            await asyncio.gather(*(ask(number) for number in order[at : at + 8]))
    finally:
        await cluster.close()
    return cached / total


async def test_kv_routing_finds_the_prefixes() -> None:
    by_turns, by_prefix = await _cached_share("round-robin"), await _cached_share("kv")
    assert by_prefix >= 2 * by_turns, f"kv {by_prefix:.2f}, round-robin {by_turns:.2f}"
