"""llmrun and NVIDIA Dynamo, both directions, four versions, both request planes; real etcd and nats-server.

Needs DYNAMO_ENVS=FOLDER with one virtual environment for each version (FOLDER/1.6.1/bin/python ...).
`make test-interop` makes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.net.client import NetClient
from runner.net.etcd import EtcdStore
from runner.net.messages import decode_delta, encode_request
from runner.net.records import Instance, RecordError, decode_instance
from runner.types import SamplingParams, TokenRequest
from tests.runner.net import daemons
from tests.runner.net.cluster import PREFIX_ENGINE, Cluster, prefix_answer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

PAIRS = [("0.4.1", "nats"), *((version, plane) for version in ("0.9.1", "1.0.2", "1.6.1") for plane in ("nats", "tcp"))]
PATH = "ns.pool.gen"
PROMPT = [40, 50, 60]
NUM_TOKENS = 40
PEER = Path(__file__).with_name("dynamo_peer.py")


def python_of(version: str) -> str:
    folder = os.environ.get("DYNAMO_ENVS")
    path = Path(folder or "/nonexistent") / version / "bin" / "python"
    if not path.exists():
        pytest.skip(f"no Dynamo {version}: DYNAMO_ENVS={folder or ''} has no {version}/bin/python")
    return str(path)


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """etcd and nats-server, named by the two variables."""
    etcd, nats = daemons.etcd(tmp_path / "etcd"), daemons.nats(tmp_path / "jetstream")
    etcd.start()
    nats.start()
    monkeypatch.setenv("ETCD_ENDPOINTS", f"http://127.0.0.1:{etcd.port}")
    monkeypatch.setenv("NATS_SERVER", f"nats://127.0.0.1:{nats.port}")
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_LOG", "error")
    yield
    etcd.kill()
    nats.kill()


@contextlib.contextmanager
def peer(version: str, plane: str, *words: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of Dynamo's, killed at the end."""
    role, *rest = words
    command = [python_of(version), str(PEER), role, PATH, plane, *rest]
    with (folder / "peer.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "DYN_REQUEST_PLANE": plane}
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


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
async def test_our_client_and_their_worker(version: str, plane: str, services: None, tmp_path: Path) -> None:
    store = EtcdStore((os.environ["ETCD_ENDPOINTS"],))
    client = NetClient("127.0.0.1", os.environ["NATS_SERVER"])
    await client.start()
    try:
        with peer(version, plane, "worker", folder=tmp_path):
            async with asyncio.timeout(40):
                instance = await find_instance(store, plane)
            for answer in await asyncio.gather(*(ask(client, instance, number) for number in range(8))):
                assert answer == (prefix_answer(PROMPT, NUM_TOKENS), "length")
    finally:
        await client.close()
        await store.close()


@pytest.mark.parametrize(("version", "plane"), PAIRS)
async def test_their_client_and_our_worker(version: str, plane: str, services: None, tmp_path: Path) -> None:
    python_of(version)
    engine = tmp_path / "prefix.py"
    engine.write_text(PREFIX_ENGINE)
    async with Cluster(tmp_path, "--store", "etcd", "--request-plane", plane) as cluster:
        await cluster.worker(f"out=pytok:{engine}", "demo")
        words = ("client", json.dumps(PROMPT), str(NUM_TOKENS))
        with peer(version, plane, *words, folder=tmp_path) as process:
            said, _ = await asyncio.to_thread(process.communicate, timeout=60)
    answer: Any = json.loads(said.splitlines()[-1])
    assert answer == {"token_ids": prefix_answer(PROMPT, NUM_TOKENS), "finish_reason": "length"}
