"""Node 0 of several against the peer (core_peer.py), which joins as the worker does; other nodes are made here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runner.engines import nodes
from runner.engines.nodes import Nodes, Place
from runner.engines.process import ProcessEngine
from runner.engines.vllm.settings import read_settings
from runner.errors import EngineDied, EngineStartFailed
from tests.runner.engines.vllm.test_vllm import collect, ids_of, make


@pytest.fixture
def leader_addr() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
async def engine(leader_addr: str) -> AsyncIterator[ProcessEngine]:
    """Node 0 of two, not started."""
    made = make(num_nodes=2, tensor_parallel_size=2, leader_addr=leader_addr, start_timeout_s=10)
    try:
        yield made
    finally:
        await made.close()


async def other(engine: ProcessEngine, **facts: Any) -> Nodes:
    """Node 1, as its follower would join."""
    spec: Any = engine._connector._spec  # type: ignore[attr-defined]
    place = read_settings(spec).place
    assert isinstance(place, Place)
    told = {**place.facts, "vllm version": "unknown", **facts}
    host, port = nodes.split_address(place.leader_addr)
    return await asyncio.to_thread(nodes.join, (host, port), 1, 2, told, 8.0, lambda phase, share: None)


async def test_it_waits_for_the_other_and_dies_with_it(engine: ProcessEngine) -> None:
    phases: list[str] = []
    engine.on_progress = lambda phase, share: phases.append(phase)
    starting = asyncio.create_task(engine.start())
    while not any("waiting for node(s) 1 to join" in phase for phase in phases):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    follower = await other(engine)
    await starting
    assert ids_of(await collect(engine, [1, 2, 3])) == [4, 5, 6, 7]
    stream = asyncio.create_task(collect(engine, [1], max_tokens=100_000))
    await asyncio.sleep(0.3)
    follower.close()
    with pytest.raises(EngineDied, match="node 1 is gone"):
        await stream

    again = asyncio.create_task(collect(engine, [1, 2, 3]))
    follower = await other(engine)
    assert ids_of(await again) == [4, 5, 6, 7]
    assert engine.num_restarts == 1
    follower.close()


async def test_a_node_that_does_not_come_is_named(engine: ProcessEngine, leader_addr: str) -> None:
    with pytest.raises(EngineStartFailed, match=r"node\(s\) 1 of 2 did not join at .* within 8 s") as caught:
        await engine.start()
    assert leader_addr in str(caught.value) and "--node-rank" in caught.value.hint


async def test_a_node_with_other_flags_hears_why(engine: ProcessEngine) -> None:
    starting = asyncio.create_task(engine.start())
    with pytest.raises(EngineStartFailed, match="node 1 has vLLM's flags '--dtype half', node 0 has"):
        await other(engine, **{"vLLM's flags": "--dtype half"})
    follower = await other(engine)
    await starting
    follower.close()
