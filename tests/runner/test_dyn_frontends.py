"""in=text, in=stdin and in=batch with out=dyn://, each run once for real: the same words as from a local engine."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runner.net.loads import LOADS
from tests.runner.net.cluster import Cluster

QUESTION = "What is the capital of France?"


@pytest.fixture
async def pool(tmp_path: Path, llamacpp_library: Path) -> AsyncIterator[Cluster]:
    """A worker with the demo model, and nobody before it yet."""
    async with Cluster(tmp_path) as cluster:
        await cluster.worker("out=llamacpp", "demo")
        yield cluster


async def llmrun(*words: str, stdin: str = "") -> str:
    command = [sys.executable, "-m", "runner", *words, "--temperature", "0"]
    ran = await asyncio.to_thread(subprocess.run, command, input=stdin, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


async def test_stdin(pool: Cluster) -> None:
    answer = await llmrun("in=stdin", "out=dyn://ns.pool.gen", *pool.flags, stdin=QUESTION)
    assert "Paris" in answer
    assert answer == await llmrun("in=stdin", "out=llamacpp", "demo", stdin=QUESTION)


async def test_batch(pool: Cluster, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"text": QUESTION.replace("France", name)}) + "\n" for name in ("France", "Italy"))
    )
    texts = []
    for place, words in (("far", ["out=dyn://ns.pool.gen", *pool.flags]), ("near", ["out=llamacpp", "demo"])):
        output = tmp_path / f"{place}.jsonl"
        await llmrun(f"in=batch:{prompts}", *words, "--output", str(output))
        texts.append([json.loads(line)["response"] for line in output.read_text().splitlines()])
    assert texts[0] == texts[1] and "Paris" in str(texts[0][0]) and "Rome" in str(texts[0][1])


async def test_text_on_a_terminal(pool: Cluster) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "runner", "in=text", "out=dyn://ns.pool.gen", *pool.flags, "--temperature", "0"]
    process = await asyncio.to_thread(
        subprocess.Popen, command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    said = b""

    async def until(text: bytes) -> None:
        nonlocal said
        async with asyncio.timeout(40):
            while text not in said:
                try:
                    said += os.read(ours, 65536)
                except BlockingIOError:
                    await asyncio.sleep(0.05)

    try:
        await until(b">")
        os.write(ours, QUESTION.encode() + b"\r")
        await until(b"Paris")
        os.write(ours, b"\x04")
        async with asyncio.timeout(20):
            while process.poll() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert process.returncode == 0, said
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)


async def test_the_workers_load_is_listed(pool: Cluster) -> None:
    async with asyncio.timeout(20):
        while True:
            (worker,) = json.loads(await asyncio.to_thread(_workers, pool.flags))
            if worker["load"] is not None:
                break
            await asyncio.sleep(0.2)
    assert worker["load"]["num_running"] == 0
    assert LOADS not in worker["endpoint"]


def _workers(flags: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "runner", "workers", *flags, "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
