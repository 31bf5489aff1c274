"""The launcher's resident memory while it serves HTTP with its engine in a child."""

from __future__ import annotations

from benchmarks import client, processes
from benchmarks.row import Row
from benchmarks.servers import llmrun
from benchmarks.settings import Settings, random_model
from runner.bench.workload import Shape

BAR_MB = 120.0


def measure(settings: Settings) -> list[Row]:
    """One row, measured after load."""
    rounds = 2 if settings.is_quick else 10
    limits = ["--context-length", "1024", "--max-running", "8", "--threads", str(settings.threads)]
    with llmrun(settings, random_model(settings), *limits) as server:
        idle = processes.rss_mb(server.process.pid)
        client.measure(server, 8, 8 * rounds, Shape(input_len=64, output_len=32), seed=1)
        loaded = processes.rss_mb(server.process.pid)
        child = processes.rss_mb(processes.engine_child(server.process.pid))
    return [
        Row(
            what="launcher memory (RSS) serving HTTP, a vocabulary of 32,000",
            ours=f"{loaded:.0f} MB",
            bar=f"<= {BAR_MB:g} MB",
            is_met=loaded <= BAR_MB,
            notes=[f"{idle:.0f} MB before the first request; the engine's child has {child:.0f} MB"],
        )
    ]
