"""llmrun and NVIDIA Dynamo, both directions, four versions, both request planes; real etcd and nats-server.

Needs DYNAMO_ENVS=FOLDER with one virtual environment for each version (FOLDER/1.6.1/bin/python ...).
`make test-interop` makes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from runner.net.client import NetClient
from runner.net.etcd import EtcdStore
from runner.net.messages import decode_delta, encode_request
from runner.net.records import Instance, RecordError, decode_instance
from runner.types import SamplingParams, TokenRequest
from tests.interop.conftest import Peer, python_of
from tests.runner.net.cluster import PREFIX_ENGINE, Cluster, prefix_answer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

PAIRS = [("0.4.1", "nats"), *((version, plane) for version in ("0.9.1", "1.0.2", "1.6.1") for plane in ("nats", "tcp"))]
PATH = "ns.pool.gen"
PROMPT = [40, 50, 60]
NUM_TOKENS = 40
PEER = Path(__file__).with_name("dynamo_peer.py")


async def find_instance(store: EtcdStore, plane: str) -> Instance:
    """The first instance of either layout on a plane."""
    while True:
        for entry in [*await store.entries("v1/instances/"), *await store.entries("instances/")]:
            with contextlib.suppress(RecordError):
                instance = decode_instance(entry.key, entry.value)
                if str(instance.address) == f"dyn://{PATH}" and instance.plane.startswith(plane):
                    return instance
        await asyncio.sleep(0.1)


async def ask(client: NetClient, instance: Instance, number: int) -> tuple[list[int], str | None]:
    request = TokenRequest(
        id=f"r{number}", token_ids=PROMPT, sampling=SamplingParams(temperature=0.0), max_tokens=NUM_TOKENS
    )
    # Dynamo wants ids that no other request has now
    stream = await client.open(instance, request.id, encode_request(request, "toy", (), ""), {})
    ids: list[int] = []
    finish = None
    while items := await stream.take(10):
        for item in items:
            delta = decode_delta(item, ())
            ids += delta.token_ids
            finish = delta.finish or finish
    stream.close()
    return ids, finish


@pytest.mark.parametrize(("version", "plane"), PAIRS)
async def test_our_client_and_their_worker(version: str, plane: str, services: None, dynamo: Peer) -> None:
    store = EtcdStore((os.environ["ETCD_ENDPOINTS"],))
    client = NetClient("127.0.0.1", os.environ["NATS_SERVER"])
    await client.start()
    try:
        with dynamo(version, plane, str(PEER), "worker", PATH, plane):
            async with asyncio.timeout(40):
                instance = await find_instance(store, plane)
            for answer in await asyncio.gather(*(ask(client, instance, number) for number in range(8))):
                assert answer == (prefix_answer(PROMPT, NUM_TOKENS), "length")
    finally:
        await client.close()
        await store.close()


@pytest.mark.parametrize(("version", "plane"), PAIRS)
async def test_their_client_and_our_worker(
    version: str, plane: str, services: None, dynamo: Peer, tmp_path: Path
) -> None:
    python_of(version)
    engine = tmp_path / "prefix.py"
    engine.write_text(PREFIX_ENGINE)
    async with Cluster(tmp_path, "--store", "etcd", "--request-plane", plane) as cluster:
        await cluster.worker(f"out=pytok:{engine}", "demo")
        words = (str(PEER), "client", PATH, plane, json.dumps(PROMPT), str(NUM_TOKENS))
        with dynamo(version, plane, *words) as process:
            said, _ = await asyncio.to_thread(process.communicate, timeout=60)
    answer: Any = json.loads(said.splitlines()[-1])
    assert answer == {"token_ids": prefix_answer(PROMPT, NUM_TOKENS), "finish_reason": "length"}
