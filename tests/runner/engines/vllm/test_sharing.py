"""Several clients of one EngineCore (--http-workers), and several cores behind one engine (--data-parallel-size)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from runner.engines.attach import attach
from runner.engines.base import EngineSpec
from runner.engines.process import ProcessEngine
from runner.engines.replicas import Replicas
from runner.errors import EngineDied
from tests.runner.engines.vllm.test_vllm import CARD, collect, ids_of, make


def join(owner: ProcessEngine | Replicas) -> Any:
    assert owner.socket_path is not None
    return attach(owner.socket_path, EngineSpec(name="vllm", card=CARD))


async def test_clients_share_a_core_and_get_their_own_tokens() -> None:
    owner = make(num_frontends=3)
    await owner.start()
    first, second = join(owner), join(owner)
    try:
        infos = [await first.start(), await second.start()]
        assert all(info.context_length == 512 for info in infos)
        many = [collect(one, [at], max_tokens=50) for at, one in enumerate([owner, first, second] * 8, 1)]
        for at, deltas in enumerate(await asyncio.gather(*many), 1):
            assert ids_of(deltas) == list(range(at + 1, at + 51))
        assert (await first.stats())["num_running"] == 0.0
    finally:
        await asyncio.gather(first.close(), second.close())
        await owner.close()


async def test_a_client_that_leaves_frees_its_number_and_its_requests() -> None:
    owner = make(num_frontends=2)
    await owner.start()
    try:
        for _ in range(3):
            client = join(owner)
            await client.start()
            asked = asyncio.create_task(collect(client, [1], max_tokens=100_000))
            await asyncio.sleep(0.1)
            assert (await owner.stats())["num_running"] == 1.0
            client._connection.link._transport.abort()  # as if it were killed: no ABORT is sent
            with pytest.raises(EngineDied):
                await asked
            client.restart_eagerly = False
            await client.close()
            until = time.monotonic() + 2
            while (await owner.stats())["num_running"] != 0.0:
                assert time.monotonic() < until
                await asyncio.sleep(0.02)
    finally:
        await owner.close()


async def test_clients_come_again_after_a_restart() -> None:
    owner = make(num_frontends=2)
    await owner.start()
    owner.restart_eagerly = True
    client = join(owner)
    try:
        await client.start()
        asked = asyncio.create_task(collect(client, [1], max_tokens=100_000))
        await asyncio.sleep(0.1)
        assert owner.pid is not None
        os.kill(owner.pid, signal.SIGKILL)
        with pytest.raises(EngineDied):
            await asked
        assert ids_of(await collect(client, [7])) == [8, 9, 10, 11]
        assert owner.num_restarts == 1
    finally:
        await client.close()
        await owner.close()


async def test_replicas_share_the_load_and_one_dead_ends_its_own_streams_only() -> None:
    cores = [make(), make()]
    engine = Replicas(cores)
    try:
        info = await engine.start()
        assert info.details["replicas"] == 2 and info.max_running == 512
        asked = [asyncio.create_task(collect(engine, [1], max_tokens=800)) for _ in range(8)]  # type: ignore[arg-type]
        await asyncio.sleep(0.2)
        assert [core.num_open for core in cores] == [4, 4]
        assert cores[0].pid is not None
        os.kill(cores[0].pid, signal.SIGKILL)
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(end, EngineDied) for end in ends) == 4
        assert [len(ids_of(end)) for end in ends if not isinstance(end, BaseException)] == [800] * 4
        await engine.health()
        async with asyncio.timeout(10):
            while not cores[0].is_up:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert cores[0].num_restarts == 1 and (await engine.stats())["num_replicas"] == 2.0
    finally:
        await engine.close()


async def test_a_replica_that_cannot_start_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.errors import EngineStartFailed

    cores = [make(), make(start_timeout_s=0.001)]
    engine = Replicas(cores)
    with pytest.raises(EngineStartFailed):
        await engine.start()
    assert [core.pid for core in cores] == [None, None]
