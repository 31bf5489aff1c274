"""dyn:// through a real etcd and a real nats-server, which are killed and come back empty; two hosts in namespaces."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import model_cards
from model_cards.resolve import resolve
from model_cards.tokenizer import load_tokenizer
from tests.runner.net import daemons
from tests.runner.net.cluster import PREFIX_ENGINE, Cluster, Program, prefix_answer

pytestmark = pytest.mark.dist


@pytest.fixture
def etcd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[daemons.Daemon]:
    daemon = daemons.etcd(tmp_path / "etcd")
    daemon.start()
    monkeypatch.setenv("ETCD_ENDPOINTS", f"http://127.0.0.1:{daemon.port}")
    yield daemon
    daemon.kill()


@pytest.fixture
async def cluster(etcd: daemons.Daemon, nats: daemons.Daemon, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, "--store", "etcd") as made:
        yield made


@pytest.fixture
def prefix_engine(tmp_path: Path) -> str:
    path = tmp_path / "prefix.py"
    path.write_text(PREFIX_ENGINE)
    return f"out=pytok:{path}"


async def _until_right(cluster: Cluster, timeout_s: float) -> float:
    """Seconds until a request succeeds again."""
    started = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while (await cluster.complete([1, 2, 3], 2))[1]:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    return time.monotonic() - started


@pytest.mark.parametrize("plane", ["tcp", "nats"])
async def test_a_killed_worker_on_either_plane(cluster: Cluster, prefix_engine: str, plane: str) -> None:
    first = await cluster.worker(prefix_engine, "demo", "--request-plane", plane)
    await cluster.worker(prefix_engine, "demo", "--request-plane", plane)
    await cluster.ingress("--migration-limit", "3", num_workers=2)
    whole = await cluster.complete([1, 2, 3], 60)
    tasks = [asyncio.create_task(cluster.complete([1, 2, 3], 60)) for _ in range(8)]
    await asyncio.sleep(0.6)
    first.signal(signal.SIGKILL)
    assert await asyncio.gather(*tasks) == [whole] * 8 and whole[1] == ""


def _right(prompts: list[list[int]], num_tokens: int) -> list[str]:
    tokenizer = load_tokenizer(resolve("demo"))
    return [tokenizer.decode(prefix_answer(prompt, num_tokens)) for prompt in prompts]


@pytest.mark.parametrize("plane", ["tcp", "nats"])
async def test_64_answers_outlive_a_killed_worker(cluster: Cluster, prefix_engine: str, plane: str) -> None:
    first = await cluster.worker(prefix_engine, "demo", "--request-plane", plane)
    await cluster.worker(prefix_engine, "demo", "--request-plane", plane)
    await cluster.ingress("--migration-limit", "3", num_workers=2)
    prompts = [[300 + number, 350, 360 + number] for number in range(64)]
    tasks = [asyncio.create_task(cluster.complete(prompt, 100)) for prompt in prompts]
    await asyncio.sleep(1.0)
    first.signal(signal.SIGKILL)
    results = await asyncio.gather(*tasks)
    assert results == [(text, "") for text in _right(prompts, 100)]


async def test_without_migration_64_answers_end_with_an_error_within_a_second(
    cluster: Cluster, prefix_engine: str
) -> None:
    worker = await cluster.worker(prefix_engine, "demo")
    await cluster.ingress()
    tasks = [asyncio.create_task(cluster.complete([300 + number, 350], 1000)) for number in range(64)]
    await asyncio.sleep(1.5)
    assert not any(task.done() for task in tasks)
    worker.signal(signal.SIGKILL)
    async with asyncio.timeout(1):
        results = await asyncio.gather(*tasks)
    assert all("was lost after" in error and "--migration-limit" in error for _, error in results)


@pytest.mark.parametrize("plane", ["tcp", "nats"])
async def test_a_worker_that_leaves_breaks_nothing(cluster: Cluster, prefix_engine: str, plane: str) -> None:
    first = await cluster.worker(prefix_engine, "demo", "--request-plane", plane)
    await cluster.worker(prefix_engine, "demo", "--request-plane", plane)
    await cluster.ingress(num_workers=2)
    tasks = [asyncio.create_task(cluster.complete([1, 2, 3], 60)) for _ in range(8)]
    await asyncio.sleep(0.6)
    first.process.send_signal(signal.SIGTERM)
    while first.process.poll() is None:
        tasks.append(asyncio.create_task(cluster.complete([1, 2, 3], 3)))
        await asyncio.sleep(0.02)
    assert [error for _, error in await asyncio.gather(*tasks) if error] == []
    assert first.process.returncode == 0


async def test_etcd_may_go_and_come_back_empty(
    cluster: Cluster, etcd: daemons.Daemon, prefix_engine: str, tmp_path: Path
) -> None:
    await cluster.worker(prefix_engine, "demo")
    await cluster.ingress()
    etcd.kill()
    await asyncio.sleep(12)  # longer than a lease
    assert (await cluster.complete([1, 2, 3], 2))[1] == ""
    shutil.rmtree(tmp_path / "etcd")
    etcd.start()
    assert await _until_right(cluster, 12) < 12
    await asyncio.sleep(6)  # the empty etcd was seen, and the worker has registered again
    assert await _until_right(cluster, 12) < 12


async def test_nats_may_go_and_come_back(cluster: Cluster, nats: daemons.Daemon, prefix_engine: str) -> None:
    await cluster.worker(prefix_engine, "demo", "--request-plane", "nats")
    await cluster.ingress()
    assert (await cluster.complete([1, 2, 3], 2))[1] == ""
    running = asyncio.create_task(cluster.complete([1, 2, 3], 100))
    await asyncio.sleep(0.5)
    nats.kill()
    assert (await running)[1] == ""  # an answer does not pass through NATS
    nats.start()
    assert await _until_right(cluster, 12) < 12


_NETNS = os.geteuid() == 0 and shutil.which("ip") is not None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a wire between them: 10.77.0.1 and 10.77.0.2."""
    if not _NETNS:
        pytest.skip("network namespaces need root and ip")
    names = (f"lla{os.getpid()}", f"llb{os.getpid()}")
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
            _ip("-n", names[0], "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", names[1])
            for at, name in enumerate(names, 1):
                _ip("-n", name, "addr", "add", f"10.77.0.{at}/24", "dev", "wire")
                for device in ("lo", "wire"):
                    _ip("-n", name, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr!r}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


_DEMO = Path(model_cards.__file__).parent / "presets" / "demo"
_QUESTION = "What is the capital of France?"


async def _ask(before: list[str], port: int) -> str:
    """The answer of the server on a host, greedy, with the tokens' ids in their order."""
    ask = (
        f"import json, urllib.request as u; r = u.Request('http://127.0.0.1:{port}/v1/chat/completions', "
        f"json.dumps({{'messages': [{{'role': 'user', 'content': {_QUESTION!r}}}], 'logprobs': True, "
        "'temperature': 0}).encode()); c = json.load(u.urlopen(r, timeout=60))['choices'][0]; "
        "print(json.dumps([c['message']['content'], [t['bytes'] for t in c['logprobs']['content']]]))"
    )
    ran = await asyncio.to_thread(
        subprocess.run, [*before, sys.executable, "-c", ask], capture_output=True, text=True, timeout=90
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


async def _ask_locally(tmp_path: Path, engine: str, model: Path) -> str:
    port = daemons.free_port()
    program = Program(["in=http", f"out={engine}", str(model), "--http-port", str(port)], tmp_path)
    try:
        await program.until("Serving ", 90)
        return await _ask([], port)
    finally:
        program.close()


@pytest.mark.parametrize(("engine", "model"), [("native", _DEMO / "hf"), ("llamacpp", _DEMO / "demo.q8_0.gguf")])
async def test_the_two_commands_of_the_seed_on_two_hosts(
    engine: str, model: Path, two_hosts: tuple[str, str], tmp_path: Path, llamacpp_library: Path
) -> None:
    daemon = daemons.etcd(tmp_path / "etcd")
    words = [word.replace("127.0.0.1", "10.77.0.1") for word in daemon.command]
    here, there = (["ip", "netns", "exec", name] for name in two_hosts)
    etcd = await asyncio.to_thread(
        subprocess.Popen, [*here, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    endpoints = f"http://10.77.0.1:{daemon.port}"
    programs = []
    try:
        worker = Program(
            ["in=dyn://llama3B_pool", f"out={engine}", str(model)], tmp_path, there,
            ETCD_ENDPOINTS=endpoints, LLMRUN_DYN_HOST="10.77.0.2",
        )  # fmt: skip
        programs.append(worker)
        ingress = Program(
            ["in=http", "out=dyn://llama3B_pool"], tmp_path, here,
            ETCD_ENDPOINTS=endpoints, LLMRUN_DYN_HOST="10.77.0.1",
        )  # fmt: skip
        programs.append(ingress)
        await ingress.until("joins, 1 now", 90)
        answer = await _ask(here, 8080)
        assert "Paris" in answer
        assert answer == await _ask_locally(tmp_path, engine, model)
    finally:
        for program in programs:
            program.close()
        etcd.kill()
        etcd.wait()
