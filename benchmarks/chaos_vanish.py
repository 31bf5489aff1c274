"""200 clients that connect and vanish at random: slots come free, memory comes back, later requests are fine."""

from __future__ import annotations

import asyncio
import random
import time

from benchmarks import processes
from benchmarks.client import measure as measure_load
from benchmarks.row import Row
from benchmarks.servers import Server, llmrun
from benchmarks.settings import Settings, random_model
from runner.bench.client import HttpTarget
from runner.bench.load import closed_loop
from runner.bench.load import run as run_loop
from runner.bench.workload import Prompts, Shape

CLIENTS, SLOTS = 200, 8
FREE_BAR_S = 2.0
MEMORY_BAR_MB = 20.0


def measure(settings: Settings) -> list[Row]:
    """Three rows. Slots are free when as many short requests as there are slots all begin to answer."""
    limits = ["--context-length", "1024", "--max-running", str(SLOTS), "--threads", str(settings.threads)]
    with llmrun(settings, random_model(settings), *limits) as server:
        measure_load(server, SLOTS, 4 * SLOTS, Shape(input_len=64, output_len=16), seed=1)
        run_loop(_vanish(server, seed=0, clients=CLIENTS // 4))
        before = processes.rss_mb(server.process.pid)
        run_loop(_vanish(server, seed=1, clients=CLIENTS))
        free_s, errors = run_loop(_use_all_slots(server))
        point = measure_load(server, SLOTS, 4 * SLOTS, Shape(input_len=64, output_len=16), seed=2)
        after = processes.rss_mb(server.process.pid)
    return [
        Row(
            what=f"{CLIENTS} clients vanish: all {SLOTS} slots answer a new request after",
            ours=f"{free_s:.2f} s, {len(errors)} errors",
            bar=f"<= {FREE_BAR_S:g} s, no error",
            is_met=free_s <= FREE_BAR_S and not errors,
            notes=errors[:3],
        ),
        Row(
            what="launcher memory after that",
            ours=f"{after - before:+.1f} MB",
            bar=f"within {MEMORY_BAR_MB:g} MB",
            is_met=after - before <= MEMORY_BAR_MB,
            notes=[f"{before:.0f} MB before, {after:.0f} MB after"],
        ),
        Row(
            what=f"{point.num_requests} later requests",
            ours=f"{point.num_errors} errors",
            bar="no error",
            is_met=point.num_errors == 0,
        ),
    ]


async def _vanish(server: Server, *, seed: int, clients: int) -> None:
    """Clients that send a long request and abort the connection 0 to 1 s later, 20 at a time."""
    rng, prompts, model = random.Random(seed), Prompts(seed), await served_name(server)
    gate = asyncio.Semaphore(20)

    async def one(wait_s: float) -> None:
        async with gate:
            target = HttpTarget(server.url, model=model)
            task = asyncio.create_task(target.run(prompts.make(Shape(input_len=100, output_len=800))))
            await asyncio.sleep(wait_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(one(rng.random()) for _ in range(clients)))


async def served_name(server: Server) -> str:
    """The model's name, asked by a connection of its own."""
    target = HttpTarget(server.url)
    await target.prepare()
    await target.close()
    return target.model


async def _use_all_slots(server: Server) -> tuple[float, list[str]]:
    """(seconds until all of them have begun to answer, errors)."""
    target, prompts = HttpTarget(server.url, timeout_s=30), Prompts(7)
    target.model = await served_name(server)
    begin = time.perf_counter()
    requests = [prompts.make(Shape(input_len=8, output_len=2)) for _ in range(SLOTS)]
    samples = await closed_loop(target, iter(requests), SLOTS)
    await target.close()
    errors = [sample.error for sample in samples if sample.error is not None]
    return max((sample.first_s or sample.end_s) for sample in samples) - begin, errors
