"""KV events through a real nats-server: an ingress knows what others have sent to the workers, and what they forgot."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.runner.net import daemons
from tests.runner.net.cluster import Cluster
from tests.runner.net.fleet import shared_prefixes

pytestmark = pytest.mark.dist


@pytest.fixture
async def ingresses(nats: daemons.Daemon, tmp_path: Path) -> AsyncIterator[tuple[Cluster, Cluster]]:
    """Two that share a folder store; the workers belong to the first."""
    flags = "--store-path", str(tmp_path / "store")
    async with Cluster(tmp_path, *flags) as one, Cluster(tmp_path, *flags) as other:
        yield one, other


async def _workers(cluster: Cluster, number: int, *words: str, **options: float) -> None:
    """Mockers with blocks of 16 tokens."""
    path = cluster.folder / "mocker.json"
    path.write_bytes(msgspec.json.encode({"speedup_ratio": 0, "block_size": 16, **options}))
    for _ in range(number):
        await cluster.worker("out=mocker", "demo", "--extra-engine-args", str(path), *words)


async def _cached(cluster: Cluster, prompt: list[int]) -> int:
    status, answer = await cluster.post("/v1/completions", prompt=prompt, max_tokens=2)
    assert status == 200, answer
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


async def _num_known(cluster: Cluster) -> int:
    """Blocks that the ingress of a cluster knows of."""
    async with cluster.session.get(f"http://127.0.0.1:{cluster.port}/metrics") as response:
        lines = (await response.text()).splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("llmrun_worker_prefix_blocks{")))


async def _until_heard(cluster: Cluster, num_blocks: int) -> None:
    """Until the ingress of a cluster knows of so many blocks."""
    async with asyncio.timeout(10):
        while (await _num_known(cluster)) != num_blocks:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def _prompts(number: int) -> list[list[int]]:
    """That share nothing."""
    unlike = (next(shared_prefixes(1, 1, prefix_len=320, seed=seed)) for seed in range(number))
    return [[300 + one % 150 for one in prompt] for prompt in unlike]


@pytest.mark.parametrize("plane", ["tcp", "nats"])
async def test_an_ingress_knows_what_another_has_sent(ingresses: tuple[Cluster, Cluster], plane: str) -> None:
    one, other = ingresses
    await _workers(one, 3, "--request-plane", plane)
    await one.ingress(num_workers=3)
    await other.ingress("--router-mode", "kv", num_workers=3)
    prompts = _prompts(8)
    assert [await _cached(one, prompt) for prompt in prompts] == [0] * 8
    await _until_heard(other, sum(len(prompt) // 16 for prompt in prompts))
    assert all([await _cached(other, prompt) for prompt in prompts])


async def test_without_events_it_does_not(ingresses: tuple[Cluster, Cluster]) -> None:
    one, other = ingresses
    await _workers(one, 3, "--no-kv-events")
    await one.ingress(num_workers=3)
    await other.ingress("--router-mode", "kv", num_workers=3)
    prompts = _prompts(8)
    for prompt in prompts:
        await _cached(one, prompt)
    await _until_heard(other, 0)
    assert not all([await _cached(other, prompt) for prompt in prompts])


async def test_what_is_thrown_away_and_a_new_engine_are_heard(ingresses: tuple[Cluster, Cluster]) -> None:
    one, _ = ingresses
    await _workers(one, 1, "--context-length", "512", num_gpu_blocks=48)
    await one.ingress("--router-mode", "kv")
    for prompt in _prompts(8):
        await _cached(one, prompt)
    await _until_heard(one, 47)  # the 48th held what followed the last full block
    engine = one.programs[0].child()
    engine.send_signal(signal.SIGKILL)
    await _until_heard(one, 0)
    (prompt,) = _prompts(1)
    async with asyncio.timeout(20):
        while True:
            status, _ = await one.post("/v1/completions", prompt=prompt, max_tokens=2)
            if status == 200:
                break
            await asyncio.sleep(0.2)
    await _until_heard(one, len(prompt) // 16)


async def test_nats_may_go_and_come_back(ingresses: tuple[Cluster, Cluster], nats: daemons.Daemon) -> None:
    one, other = ingresses
    await _workers(one, 2)
    await one.ingress("--router-mode", "kv", num_workers=2)
    await other.ingress("--router-mode", "kv", num_workers=2)
    prompts = _prompts(6)
    await _cached(one, prompts[0])
    await _until_heard(other, len(prompts[0]) // 16)
    nats.kill()
    await _cached(one, prompts[1])
    nats.start()
    await _until_both_are_back(one, other)
    num_known = await _num_known(other)
    for prompt in prompts[2:]:
        await _cached(one, prompt)
    await _until_heard(other, num_known + sum(len(prompt) // 16 for prompt in prompts[2:]))
    assert all([await _cached(other, prompt) for prompt in prompts[2:]])


async def _until_both_are_back(one: Cluster, other: Cluster) -> None:
    """Workers and the other ingress connect again by themselves: until it hears of all that each worker is sent."""
    async with asyncio.timeout(30):
        for number in itertools.count(300, 2):
            num_known = await _num_known(other)
            for prompt in ([number] * 64, [number + 1] * 64):  # two that share nothing go to two workers
                await _cached(one, prompt)
            await asyncio.sleep(0.5)
            if await _num_known(other) == num_known + 8:
                return
