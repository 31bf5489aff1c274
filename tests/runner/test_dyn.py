"""in=dyn:// and out=dyn:// as programs: real workers that are killed, frozen and asked to leave under load."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from model_cards.resolve import resolve
from model_cards.tokenizer import load_tokenizer
from tests.runner.net.cluster import PREFIX_ENGINE, Cluster, Program, prefix_answer

NUM_STREAMS = 16
PROMPTS = [[40 + number, 50, 60 + number] for number in range(NUM_STREAMS)]


@pytest.fixture
def prefix_engine(tmp_path: Path) -> str:
    path = tmp_path / "prefix.py"
    path.write_text(PREFIX_ENGINE)
    return f"out=pytok:{path}"


async def _load(cluster: Cluster, num_tokens: int) -> list[asyncio.Task[tuple[str, str]]]:
    """Streams that run."""
    tasks = [asyncio.create_task(cluster.complete(prompt, num_tokens)) for prompt in PROMPTS]
    await asyncio.sleep(1.0)
    return tasks


def _right(results: list[tuple[str, str]], num_tokens: int) -> list[bool]:
    """Whether each text is that of the one right answer, token by token."""
    tokenizer = load_tokenizer(resolve("demo"))
    expected = [tokenizer.decode(prefix_answer(prompt, num_tokens)) for prompt in PROMPTS]
    assert len(set(expected)) == NUM_STREAMS
    return [text == one for (text, _), one in zip(results, expected, strict=True)]


async def test_answers_go_on_when_a_worker_is_killed(tmp_path: Path, prefix_engine: str) -> None:
    async with Cluster(tmp_path) as cluster:
        first = await cluster.worker(prefix_engine, "demo")
        await cluster.worker(prefix_engine, "demo")
        await cluster.ingress("--migration-limit", "3", num_workers=2)
        tasks = await _load(cluster, 100)
        first.signal(signal.SIGKILL)
        results = await asyncio.gather(*tasks)
        assert [error for _, error in results if error] == []
        assert all(_right(results, 100))


async def test_without_migration_a_killed_worker_is_told_at_once(tmp_path: Path, prefix_engine: str) -> None:
    async with Cluster(tmp_path) as cluster:
        worker = await cluster.worker(prefix_engine, "demo")
        await cluster.ingress()
        tasks = await _load(cluster, 500)
        worker.signal(signal.SIGKILL)
        async with asyncio.timeout(3):
            results = await asyncio.gather(*tasks)
        assert all("was lost after" in error and "--migration-limit" in error for _, error in results)


async def test_a_worker_that_is_asked_to_leave_breaks_nothing(tmp_path: Path, prefix_engine: str) -> None:
    async with Cluster(tmp_path) as cluster:
        first = await cluster.worker(prefix_engine, "demo")
        await cluster.worker(prefix_engine, "demo")
        await cluster.ingress(num_workers=2)
        tasks = await _load(cluster, 150)
        first.process.send_signal(signal.SIGTERM)
        tasks += [asyncio.create_task(cluster.complete(PROMPTS[0], 5)) for _ in range(20)]
        results = await asyncio.gather(*tasks)
        assert [error for _, error in results if error] == []
        assert all(_right(results[:NUM_STREAMS], 150))
        assert await first.ended() == 0


async def test_a_frozen_worker_is_noticed(tmp_path: Path, prefix_engine: str) -> None:
    async with Cluster(tmp_path) as cluster:
        first = await cluster.worker(prefix_engine, "demo")
        await cluster.worker(prefix_engine, "demo")
        await cluster.ingress("--migration-limit", "3", num_workers=2)
        tasks = await _load(cluster, 100)
        first.signal(signal.SIGSTOP)
        async with asyncio.timeout(25):
            results = await asyncio.gather(*tasks)
        assert [error for _, error in results if error] == []
        assert all(_right(results, 100))


async def test_nothing_listens_beyond_this_machine_unless_told(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.worker("out=echo_core", "demo")
        await cluster.ingress()
        assert (await cluster.complete([300, 301], 2))[1] == ""
        for program in cluster.programs:
            process = psutil.Process(program.process.pid)
            sockets = [one for each in (process, *process.children(True)) for one in each.net_connections("inet")]
            listening = {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
            assert listening == {"127.0.0.1"}


async def test_models_come_and_go(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.ingress(out="dyn", num_workers=0)
        status, body = await cluster.post("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
        assert (status, body["error"]["code"]) == (503, "engine_busy")
        assert (
            "no worker serves a model yet; looking for workers of any model in the folder" in body["error"]["message"]
        )
        one = await cluster.worker("out=echo_core", "demo", "--model-name", "one")
        await cluster.worker("out=echo_core", "demo", "--model-name", "two", address="dyn://other")
        await cluster.programs[0].until("two: worker")
        for name in ("one", "two"):
            status, body = await cluster.post("/v1/completions", model=name, prompt="hello there", max_tokens=6)
            assert (status, body["choices"][0]["text"].strip()[:4]) == (200, "hell"), body
        async with cluster.session.get(f"http://127.0.0.1:{cluster.port}/metrics") as response:
            assert 'llmrun_worker_requests_total{model="one",worker="' in await response.text()
        one.process.send_signal(signal.SIGTERM)
        await cluster.programs[0].until("one is not served any more")
        status, body = await cluster.post("/v1/completions", model="one", prompt="hello")
        assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_a_worker_of_another_model_under_the_same_name_is_refused(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.worker("out=echo_core", "demo", "--model-name", "same")
        ingress = await cluster.ingress()
        await cluster.worker("out=echo_core", "demo-hf", "--model-name", "same")
        await ingress.until("is not used: its card of same is another one")


async def test_the_ids_are_those_of_a_local_run(tmp_path: Path, llamacpp_library: Path) -> None:
    flags = ("--store-path", str(tmp_path / "store"))
    worker = Program(["in=dyn://llama3B_pool", "out=llamacpp", "demo", *flags], tmp_path)
    try:
        await worker.until("Serving ")
        question = ["What is the capital of France?", "--temperature", "0"]
        answers = []
        for words in (["demo", "out=llamacpp"], ["out=dyn://llama3B_pool", *flags]):
            command = [sys.executable, "-m", "runner", *words, *question]
            if words[0] != "demo":
                command = [sys.executable, "-m", "runner", *words, "--temperature", "0"]
            ran = await asyncio.to_thread(
                subprocess.run, command, input=question[0] if words[0] != "demo" else "", text=True,
                capture_output=True, timeout=60,
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr
            answers.append(ran.stdout)
        assert answers[0] == answers[1] and "Paris" in answers[0]
    finally:
        worker.close()
