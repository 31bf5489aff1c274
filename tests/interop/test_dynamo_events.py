"""KV events between NVIDIA Dynamo 1.6.1 and llmrun, over NATS: each one's router and the other's workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import model_cards
from tests.interop.conftest import Peer, python_of
from tests.interop.test_dynamo_programs import until_served
from tests.runner.net.cluster import Cluster, Program

pytestmark = [pytest.mark.interop, pytest.mark.timeout(150)]

MODEL = Path(model_cards.__file__).parent / "presets" / "demo" / "hf"
PROMPTS = [[300 + number] * 200 for number in range(8)]
TEXTS = [
    f"{word} and so on, and on, and on. " * 20 for word in ("One", "Two", "Red", "Blue", "Up", "Down", "In", "Out")
]


async def _counts(cluster: Cluster, name: str) -> dict[str, float]:
    """A metric of the ingress, by worker."""
    async with cluster.session.get(f"http://127.0.0.1:{cluster.port}/metrics") as response:
        lines = (await response.text()).splitlines()
    found = [line for line in lines if line.startswith(f"llmrun_worker_{name}{{")]
    return {line.split('worker="')[1].split('"')[0]: float(line.split()[-1]) for line in found}


async def _where(cluster: Cluster, prompt: list[int]) -> str:
    """The worker that the ingress sends a prompt to."""
    before = await _counts(cluster, "requests_total")
    status, answer = await cluster.post("/v1/completions", prompt=prompt, max_tokens=2, ignore_eos=True)
    assert status == 200, answer
    (worker,) = (name for name, count in (await _counts(cluster, "requests_total")).items() if count > before[name])
    return worker


async def test_our_ingress_hears_their_mocker(services: None, dynamo: Peer, tmp_path: Path) -> None:
    words = ["-m", "dynamo.mocker", "--model-path", str(MODEL), "--model-name", "mock", "--max-model-len", "512"]
    words += ["--endpoint", "dyn://ns.pool.gen", "--speedup-ratio", "10", "--block-size", "16", "--num-workers", "3"]
    flags = "--store", "etcd"
    async with Cluster(tmp_path, *flags) as one, Cluster(tmp_path, *flags) as other:
        with dynamo("1.6.1", "tcp", *words, "--event-plane", "nats"):
            await one.ingress(num_workers=3)
            await other.ingress("--router-mode", "kv", num_workers=3)
            homes = [await _where(one, prompt) for prompt in PROMPTS]
            assert len(set(homes)) == 3
            async with asyncio.timeout(10):
                while sum((await _counts(other, "prefix_blocks")).values()) < len(PROMPTS) * 12:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert [await _where(other, prompt) for prompt in PROMPTS] == homes


@pytest.mark.parametrize("words", [[], ["--no-kv-events"]], ids=["events", "none"])
async def test_their_router_hears_our_workers(
    words: list[str], services: None, dynamo: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prompt goes once to a worker by our ingress, in turn, and then three times wherever their router wants."""
    python_of("1.6.1")
    monkeypatch.setenv("DYN_EVENT_PLANE", "nats")
    options = tmp_path / "mocker.json"
    options.write_text('{"speedup_ratio": 0, "block_size": 16}')
    flags = "--store", "etcd"
    async with Cluster(tmp_path, *flags) as one, Cluster(tmp_path, *flags) as other:
        words = ["out=mocker", str(MODEL), "--model-name", "mock", "--extra-engine-args", str(options), "-v"]
        workers = [await one.worker(*words) for _ in range(3)]
        with dynamo("1.6.1", "tcp", "-m", "dynamo.frontend", "--http-port", str(other.port), "--router-mode", "kv"):
            await until_served(other)
            await one.ingress(num_workers=3)
            homes = [await _asked(one, workers, text) for text in TEXTS]
            assert len(set(homes)) == 3
            await asyncio.sleep(1.0)
            theirs = [[await _asked(other, workers, text) for _ in range(3)] for text in TEXTS]
    is_told = "--no-kv-events" not in words
    assert (theirs == [[home] * 3 for home in homes]) == is_told


async def _asked(cluster: Cluster, workers: list[Program], text: str) -> int:
    """The number of the worker that a prompt was sent to."""
    before = [worker.said.count(" tokens") for worker in workers]
    status, answer = await cluster.post("/v1/completions", model="mock", prompt=text, max_tokens=2)
    assert status == 200, answer
    await asyncio.sleep(0.1)
    (at,) = (at for at, worker in enumerate(workers) if worker.said.count(" tokens") > before[at])
    return at
