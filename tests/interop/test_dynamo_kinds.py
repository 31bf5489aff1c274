"""Workers of text and of embeddings, NVIDIA Dynamo 1.6.1: theirs behind our ingress, ours behind their frontend."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

import model_cards
from tests.interop.conftest import Peer, python_of
from tests.interop.test_dynamo_programs import until_served
from tests.runner.net.cluster import Cluster

pytestmark = [pytest.mark.interop, pytest.mark.timeout(150)]

VERSION = "1.6.1"
MODEL = Path(model_cards.__file__).parent / "presets" / "demo" / "hf"
PEER = Path(__file__).with_name("dynamo_kinds_peer.py")
MESSAGES = [{"role": "user", "content": "some words in a row"}]


@pytest.mark.parametrize("plane", ["nats", "tcp"])
async def test_their_worker_of_text(plane: str, services: None, dynamo: Peer, tmp_path: Path) -> None:
    async with Cluster(tmp_path, "--store", "etcd") as cluster:
        with dynamo(VERSION, plane, str(PEER), "text", "ns.pool.gen", plane, str(MODEL), "theirs"):
            await cluster.ingress()
            for status, answer in await asyncio.gather(
                *(cluster.post("/v1/chat/completions", messages=MESSAGES) for _ in range(4))
            ):
                assert (status, answer["model"]) == (200, "theirs"), answer
                assert answer["choices"][0]["message"]["content"] == "SOME WORDS IN A ROW "


@pytest.mark.parametrize("plane", ["nats", "tcp"])
async def test_their_worker_of_embeddings(plane: str, services: None, dynamo: Peer, tmp_path: Path) -> None:
    async with Cluster(tmp_path, "--store", "etcd") as cluster:
        with dynamo(VERSION, plane, str(PEER), "embedding", "ns.pool.gen", plane, str(MODEL), "theirs"):
            await cluster.ingress()
            inputs = [[5, 6, 7], [8]]
            status, answer = await cluster.post("/v1/embeddings", input=inputs)
            assert status == 200, answer
            made = [one["embedding"] for one in answer["data"]]
            assert made == [np.float32([len(ids), sum(ids) / 3]).tolist() for ids in inputs]
            assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
            status, answer = await cluster.post("/v1/completions", prompt=[5, 6], max_tokens=2)
            assert status == 400 and "theirs only embeds" in answer["error"]["message"], answer


@pytest.mark.parametrize("plane", ["nats", "tcp"])
async def test_our_worker_of_text_behind_their_frontend(
    plane: str, services: None, dynamo: Peer, tmp_path: Path
) -> None:
    python_of(VERSION)
    async with Cluster(tmp_path, "--store", "etcd", "--request-plane", plane) as cluster:
        await cluster.worker("out=echo_full", "--model-name", "ours")
        with dynamo(VERSION, plane, "-m", "dynamo.frontend", "--http-port", str(cluster.port)):
            await until_served(cluster)
            status, answer = await cluster.post("/v1/chat/completions", model="ours", messages=MESSAGES)
            assert status == 200, answer
            assert answer["choices"][0]["message"]["content"] == MESSAGES[0]["content"]
            assert answer["choices"][0]["finish_reason"] == "stop"
