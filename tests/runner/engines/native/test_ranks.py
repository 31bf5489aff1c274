"""Tensor parallelism with real processes over gloo: the same ids as one rank, and the end of any rank is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

torch = pytest.importorskip("torch")

from model_cards.resolve import resolve  # noqa: E402
from runner.engines import native  # noqa: E402
from runner.engines.base import Engine, EngineOptions, EngineSpec  # noqa: E402
from runner.errors import EngineDied, EngineStartFailed  # noqa: E402
from runner.types import SamplingParams, TokenRequest  # noqa: E402
from tests.runner.engines.native.native_driver import make_toy_llama  # noqa: E402

BOUND_S = 60.0


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_llama(tmp_path_factory.mktemp("toy"))


def make(folder: Path, **options: Any) -> Engine:
    fixed = {"dtype": "float32", "device": "cpu", "threads": 1, "start_timeout_s": 60.0, "max_restarts": 0, **options}
    return native.make_engine(EngineSpec(name="native", card=resolve(str(folder)), options=EngineOptions(**fixed)))


async def ids(engine: Engine, tokens: list[int], count: int) -> list[int]:
    request = TokenRequest(id=str(tokens), token_ids=tokens, sampling=SamplingParams(temperature=0.0), max_tokens=count)
    made: list[int] = []
    async with asyncio.timeout(BOUND_S), aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            made += delta.token_ids
    return made


async def answers(engine: Engine) -> list[list[int]]:
    return list(await asyncio.gather(*[ids(engine, list(range(5, 10 + 7 * n)), 20) for n in range(5)]))


def rank_processes(engine: Any) -> list[psutil.Process]:
    children = psutil.Process(engine.pid).children(recursive=True)
    return [child for child in children if "runner.engines.native.member" in child.cmdline()]


async def test_two_ranks_give_the_ids_of_one_and_none_is_left(toy: Path) -> None:
    alone, together = make(toy), make(toy, tensor_parallel_size=2)
    try:
        await alone.start()
        info = await together.start()
        assert info.details["ranks"] == 2
        ranks = rank_processes(together)
        assert len(ranks) == 1
        assert await answers(together) == await answers(alone)
    finally:
        await alone.close()
        await together.close()
    _, alive = psutil.wait_procs(ranks, timeout=5)
    assert not alive


async def test_a_killed_rank_ends_every_stream_with_the_reason(toy: Path) -> None:
    engine = make(toy, tensor_parallel_size=2)
    try:
        await engine.start()
        (rank,) = rank_processes(engine)
        streams = [asyncio.create_task(ids(engine, [5, 6, 7 + n], 400)) for n in range(8)]
        await asyncio.sleep(0.2)
        rank.send_signal(signal.SIGKILL)
        done, pending = await asyncio.wait(streams, timeout=BOUND_S)
        assert not pending
        for stream in done:
            error = stream.exception()
            assert isinstance(error, EngineDied)
            assert "rank 1 is gone" in str(error) or "SIGKILL" in str(error)
    finally:
        await engine.close()


async def test_a_killed_leader_leaves_no_rank(toy: Path) -> None:
    engine: Any = make(toy, tensor_parallel_size=2)
    try:
        await engine.start()
        ranks = rank_processes(engine)
        os.kill(engine.pid, signal.SIGKILL)
        _, alive = await asyncio.to_thread(psutil.wait_procs, ranks, 10)
        assert not alive
    finally:
        await engine.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_two_nodes_give_the_ids_of_one(toy: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    shared = {"tensor_parallel_size": 2, "num_nodes": 2, "leader_addr": address}
    alone, leader, follower = make(toy), make(toy, **shared), make(toy, node_rank=1, **shared)
    try:
        await asyncio.gather(alone.start(), leader.start(), follower.start())
        assert await answers(leader) == await answers(alone)
        await follower.health()
        await leader.close()
        async with asyncio.timeout(BOUND_S):
            while True:
                try:
                    await follower.health()
                except EngineDied:
                    break
                await asyncio.sleep(0.05)
    finally:
        for engine in (alone, leader, follower):
            await engine.close()


async def test_a_node_that_does_not_come_is_named(toy: Path) -> None:
    leader = make(toy, tensor_parallel_size=2, num_nodes=2, leader_addr=f"127.0.0.1:{free_port()}", start_timeout_s=6.0)
    with pytest.raises(EngineStartFailed, match=r"rank\(s\) 1 of node\(s\) 1 did not join within|not ready within 6 s"):
        await leader.start()
    await leader.close()
