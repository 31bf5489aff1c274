"""Dynamo's own programs: its frontend before our worker, its mocker and its workers with a card behind our ingress."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import model_cards
from model_cards.resolve import resolve
from model_cards.tokenizer import load_tokenizer
from tests.interop.conftest import Peer, python_of
from tests.runner.net.cluster import Cluster, prefix_answer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(150)]

PAIRS = [(version, plane) for version in ("0.9.1", "1.0.2", "1.6.1") for plane in ("nats", "tcp")]
MODEL = Path(model_cards.__file__).parent / "presets" / "demo" / "hf"
PEER = Path(__file__).with_name("dynamo_peer.py")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


async def until_served(cluster: Cluster) -> None:
    """Until the program at the cluster's port lists a model."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with cluster.session.get(f"http://127.0.0.1:{cluster.port}/v1/models") as response:
                    if (await response.json())["data"]:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.3)


async def local_answer() -> str:
    """What one local run says to QUESTION."""
    words = ["-m", "runner", "demo-hf", "out=native", QUESTION[0]["content"], "--temperature", "0"]
    ran = await asyncio.to_thread(subprocess.run, [sys.executable, *words], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize(("version", "plane"), PAIRS)
async def test_their_frontend_and_our_worker(
    version: str, plane: str, services: None, dynamo: Peer, tmp_path: Path
) -> None:
    python_of(version)
    async with Cluster(tmp_path, "--store", "etcd", "--request-plane", plane) as cluster:
        await cluster.worker("out=native", "demo-hf")
        with dynamo(version, plane, "-m", "dynamo.frontend", "--http-port", str(cluster.port)):
            await until_served(cluster)
            request: dict[str, Any] = {"model": "demo-hf", "messages": QUESTION, "max_tokens": 60, "temperature": 0}
            answers = await asyncio.gather(*(cluster.post("/v1/chat/completions", **request) for _ in range(4)))
    expected = await local_answer()
    assert "Paris" in expected
    for status, answer in answers:
        assert (status, answer["choices"][0]["message"]["content"].strip()) == (200, expected), answer
        assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("plane", ["nats", "tcp"])
async def test_our_ingress_and_their_mocker(plane: str, services: None, dynamo: Peer, tmp_path: Path) -> None:
    words = ["-m", "dynamo.mocker", "--model-path", str(MODEL), "--model-name", "mock", "--max-model-len", "512"]
    words += ["--endpoint", "dyn://ns.pool.gen", "--speedup-ratio", "10"]
    async with Cluster(tmp_path, "--store", "etcd") as cluster:
        with dynamo("1.6.1", plane, *words):
            await cluster.ingress()
            request: dict[str, Any] = {"model": "mock", "messages": QUESTION, "max_tokens": 10, "ignore_eos": True}
            for status, answer in await asyncio.gather(
                *(cluster.post("/v1/chat/completions", **request) for _ in range(8))
            ):
                assert (status, answer["usage"]["completion_tokens"]) == (200, 10), answer
                assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("version", "plane"), PAIRS)
async def test_our_ingress_and_their_worker_with_a_card(
    version: str, plane: str, services: None, dynamo: Peer, tmp_path: Path
) -> None:
    async with Cluster(tmp_path, "--store", "etcd") as cluster:
        with dynamo(version, plane, str(PEER), "worker", "ns.pool.gen", plane, str(MODEL), "theirs"):
            await cluster.ingress()
            assert await cluster.complete([40, 50, 60], 12) == (expected_text(), "")


async def test_our_ingress_and_their_worker_without_a_card(services: None, dynamo: Peer, tmp_path: Path) -> None:
    """0.4 keeps cards in NATS: there the MODEL is named at the ingress."""
    async with Cluster(tmp_path, "--store", "etcd") as cluster:
        with dynamo("0.4.1", "nats", str(PEER), "worker", "ns.pool.gen", "nats"):
            await cluster.ingress(str(MODEL))
            assert await cluster.complete([40, 50, 60], 12) == (expected_text(), "")


def expected_text() -> str:
    """What their worker answers to [40, 50, 60]."""
    return load_tokenizer(resolve(str(MODEL))).decode(prefix_answer([40, 50, 60], 12))
