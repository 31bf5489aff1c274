"""Measuring a server with the client of `llmrun bench`, so that every server is measured alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial

import msgspec

from benchmarks.quiet import undisturbed
from benchmarks.servers import Server
from runner.bench.client import HttpTarget
from runner.bench.load import closed_loop, open_loop
from runner.bench.load import run as run_loop
from runner.bench.records import BenchRequest, Point, Sample
from runner.bench.summary import summarize
from runner.bench.workload import Prompts, Shape, arrivals


def measure(
    server: Server, concurrency: int, num_requests: int, shape: Shape, *, seed: int, endpoint: str = "chat"
) -> Point:
    """One closed-loop load of random prompts. Raises RuntimeError if any request failed."""
    samples, cpu_s = run_loop(_closed(server, concurrency, num_requests, shape, seed, endpoint))
    point = summarize(f"{concurrency} at once", samples, cpu_s=cpu_s)
    return _flawless(server, point)


def _flawless(server: Server, point: Point) -> Point:
    if point.num_errors:
        raise RuntimeError(f"{server.name}: {point.num_errors} of {point.num_requests} failed: {point.errors}")
    return point


async def _closed(
    server: Server, concurrency: int, num_requests: int, shape: Shape, seed: int, endpoint: str
) -> tuple[list[Sample], float]:
    target = HttpTarget(server.url, endpoint=endpoint)
    await target.prepare()
    prompts = Prompts(seed)
    requests = [prompts.make(shape) for _ in range(num_requests)]
    cpu = time.process_time()
    try:
        return await closed_loop(target, iter(requests), concurrency), time.process_time() - cpu
    finally:
        await target.close()


def measure_open(server: Server, rate: float, num_requests: int, shape: Shape, *, seed: int) -> Point:
    """One open-loop load of random prompts, evenly spaced, `rate` a second. Raises RuntimeError if a request failed."""
    samples, cpu_s = run_loop(_open(server, rate, num_requests, shape, seed))
    point = summarize(f"{rate:g} a second", samples, cpu_s=cpu_s)
    return _flawless(server, point)


async def _open(server: Server, rate: float, num_requests: int, shape: Shape, seed: int) -> tuple[list[Sample], float]:
    target = HttpTarget(server.url)
    await target.prepare()
    prompts, times = Prompts(seed), arrivals(rate, is_poisson=False, seed=seed)
    requests = [msgspec.structs.replace(prompts.make(shape), arrival_s=next(times)) for _ in range(num_requests)]
    cpu = time.process_time()
    try:
        return await open_loop(target, requests), time.process_time() - cpu
    finally:
        await target.close()


def interleaved(
    servers: Sequence[Server], repeats: int, concurrency: int, num_requests: int, shape: Shape
) -> dict[str, list[Point]]:
    """A, B, C, A, B, C …: every server's points, so that a noisy minute hits all of them. One warm-up each.

    Points that other programs disturbed are measured again.
    """
    for server in servers:
        measure(server, concurrency, concurrency, Shape(input_len=32, output_len=8), seed=1_000)
    points: dict[str, list[Point]] = {server.name: [] for server in servers}
    for repeat in range(repeats):
        for server in servers:
            run = partial(measure, server, concurrency, num_requests, shape, seed=repeat)
            points[server.name].append(undisturbed(run, [other.process.pid for other in servers]))
    return points


def ask(server: Server, requests: Sequence[BenchRequest], *, keep_text: bool = False) -> list[Sample]:
    """Requests one after the other; errors stay in the samples."""

    async def run() -> list[Sample]:
        target = HttpTarget(server.url, keep_text=keep_text, timeout_s=120)
        await target.prepare()
        try:
            return await closed_loop(target, iter(requests), 1)
        finally:
            await target.close()

    return run_loop(run())


def median(values: Sequence[float]) -> float:
    """Median; the name the rows read best with."""
    return statistics.median(values)


def spread_text(values: Sequence[float], unit: str) -> str:
    """Median with the range of the repeats."""
    return f"{median(values):,.1f} {unit} ({min(values):,.1f} to {max(values):,.1f})"
