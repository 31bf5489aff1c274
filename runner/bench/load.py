"""Applying a load: closed loop (so many at once) or open loop (at given times), to any target.

Owns when requests are sent, and the event loop that sends them. Knows neither what they say nor what becomes of the
samples.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from runner.bench.records import BenchRequest, Sample, Target

T = TypeVar("T")
Progress = Callable[[int], None]
"""Called with the number of requests done."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end on the cheapest event loop there is: measuring shares the machine with what is measured."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop
    except ImportError:
        pass
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)


def _ignore(_: int) -> None:
    pass


async def closed_loop(
    target: Target, requests: Iterator[BenchRequest], concurrency: int, progress: Progress = _ignore
) -> list[Sample]:
    """Keep `concurrency` requests open until `requests` is used up."""
    samples: list[Sample] = []

    async def worker() -> None:
        for request in requests:
            samples.append(await target.run(request))
            progress(len(samples))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return samples


async def open_loop(target: Target, requests: Sequence[BenchRequest], progress: Progress = _ignore) -> list[Sample]:
    """Send each request at its `arrival_s`, however many are still open."""
    samples: list[Sample] = []
    start = time.perf_counter()

    async def one(request: BenchRequest) -> None:
        samples.append(await target.run(request))
        progress(len(samples))

    async with asyncio.TaskGroup() as group:
        for request in requests:
            assert request.arrival_s is not None
            await asyncio.sleep(max(0.0, start + request.arrival_s - time.perf_counter()))
            group.create_task(one(request))
    return samples
