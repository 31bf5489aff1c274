"""kill -9 of the launcher while it streams: its engine's process must be gone within two seconds."""

from __future__ import annotations

import asyncio
import os
import signal

from benchmarks import processes
from benchmarks.row import Row
from benchmarks.servers import Server, llmrun
from benchmarks.settings import Settings, random_model
from runner.bench.client import HttpTarget
from runner.bench.load import run as run_loop
from runner.bench.workload import Prompts, Shape

BAR_S = 2.0


def measure(settings: Settings) -> list[Row]:
    """One row; the worst of the repeats."""
    worst: list[float | None] = []
    for _ in range(settings.repeats):
        limits = ["--context-length", "2048", "--max-running", "8", "--threads", str(settings.threads)]
        with llmrun(settings, random_model(settings), *limits) as server:
            worst.append(run_loop(_kill(server)))
    is_met = all(value is not None and value <= BAR_S for value in worst)
    shown = ", ".join("never" if value is None else f"{value * 1e3:.0f} ms" for value in worst)
    return [
        Row(
            what="kill -9 of the launcher: its children are gone after",
            ours=shown,
            bar=f"<= {BAR_S:g} s",
            is_met=is_met,
        )
    ]


async def _kill(server: Server) -> float | None:
    target, prompts = HttpTarget(server.url, timeout_s=30), Prompts(0)
    await target.prepare()
    tasks = [asyncio.create_task(target.run(prompts.make(Shape(input_len=16, output_len=1500)))) for _ in range(4)]
    await asyncio.sleep(1.5)
    family = processes.children(server.process.pid)
    if not family:
        raise RuntimeError("the launcher has no child to look for")
    os.kill(server.process.pid, signal.SIGKILL)
    took = await asyncio.to_thread(processes.seconds_until, lambda: not any(map(processes.is_alive, family)), BAR_S * 3)
    await asyncio.gather(*tasks)
    await target.close()
    return took
