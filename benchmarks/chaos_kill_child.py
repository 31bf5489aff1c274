"""kill -9 of the engine's process under 32 streams: every stream ends with an error at once, the next request works."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from benchmarks import processes
from benchmarks.client import ask
from benchmarks.row import Row
from benchmarks.servers import Server, llmrun, status, stop
from benchmarks.settings import Settings, random_model
from runner.bench.client import HttpTarget
from runner.bench.load import run as run_loop
from runner.bench.records import BenchRequest, Sample
from runner.bench.workload import Prompts, Shape

STREAMS = 32
END_BAR_S = 1.0


def measure(settings: Settings) -> list[Row]:
    """Three rows."""
    limits = ["--context-length", "2048", "--max-running", str(STREAMS), "--threads", str(settings.threads)]
    with llmrun(settings, random_model(settings), *limits) as server:
        killed_s, samples, health = run_loop(_kill(server))
        after = ask(server, [BenchRequest(prompt="hello", max_tokens=4)])[0]
        family = [server.process.pid, *processes.children(server.process.pid)]
        stop(server)
        orphans = [pid for pid in family if processes.is_alive(pid)]
    return [_streams(killed_s, samples, health), _next(after), _orphans(orphans, len(family))]


async def _kill(server: Server) -> tuple[float, list[Sample], int | None]:
    """(time of the kill, samples, status of /health 0.1 s after it)."""
    target, prompts = HttpTarget(server.url, timeout_s=60), Prompts(0)
    await target.prepare()
    long = Shape(input_len=16, output_len=1500)
    tasks = [asyncio.create_task(target.run(prompts.make(long))) for _ in range(STREAMS)]
    await asyncio.sleep(3.0)
    os.kill(processes.engine_child(server.process.pid), signal.SIGKILL)
    killed_s = time.perf_counter()
    await asyncio.sleep(0.1)
    health = await asyncio.to_thread(status, server.port, "/health")
    samples = list(await asyncio.gather(*tasks))
    await target.close()
    return killed_s, samples, health


def _streams(killed_s: float, samples: list[Sample], health: int | None) -> Row:
    num_errors = sum(sample.error is not None for sample in samples)
    slowest = max(sample.end_s for sample in samples) - killed_s
    messages = sorted({sample.error or "no error" for sample in samples})[:2]
    return Row(
        what=f"kill -9 of the engine under {STREAMS} streams: streams that ended with an error, slowest",
        ours=f"{num_errors} of {STREAMS}, {slowest * 1e3:.0f} ms",
        bar=f"all within {END_BAR_S:g} s",
        is_met=num_errors == STREAMS and slowest <= END_BAR_S,
        notes=[f"/health 0.1 s after it: {health}", *(f"a stream's error: {message}" for message in messages)],
    )


def _next(after: Sample) -> Row:
    took = after.end_s - after.start_s
    return Row(
        what="the next request after that",
        ours=f"answered after {took:.2f} s" if after.error is None else f"failed: {after.error}",
        bar="answered",
        is_met=after.error is None,
    )


def _orphans(orphans: list[int], number: int) -> Row:
    return Row(what="processes left after the end", ours=f"{len(orphans)} of {number}", bar="none", is_met=not orphans)
