"""dyn://: CPU of ingress and worker per streamed token, with 64 streams and an engine that only pretends.

The engine is a process of its own below the worker and does not count. The ingress is a whole one: HTTP, text and all.
"""

from __future__ import annotations

from benchmarks import client
from benchmarks.dist_cluster import Cluster, cluster
from benchmarks.processes import cpu_s
from benchmarks.row import Row
from benchmarks.settings import Settings
from runner.bench.workload import Shape

STREAMS, LONG = 64, 256
BAR_US = 15.0


def measure(settings: Settings) -> list[Row]:
    """Rows for both together, and for each."""
    with cluster(settings, 1, ["--max-running", str(STREAMS)]) as made:
        client.measure(made.ingress, STREAMS, STREAMS, Shape(input_len=16, output_len=16), seed=99)
        pairs = [_cost(made, settings, repeat) for repeat in range(settings.repeats)]
    both = [sum(pair) for pair in pairs]
    return [
        Row(
            what=f"ingress + worker CPU per streamed token, {STREAMS} streams, mocker",
            ours=client.spread_text(both, "us"),
            bar=f"<= {BAR_US:g} us",
            is_met=client.median(both) <= BAR_US,
            notes=[
                f"ingress {client.spread_text([pair[0] for pair in pairs], 'us')}, "
                f"worker {client.spread_text([pair[1] for pair in pairs], 'us')}; "
                "the ingress' figure holds its HTTP server and detokenizing too",
            ],
        ),
    ]


def _cost(made: Cluster, settings: Settings, seed: int) -> tuple[float, float]:
    """us per token of ingress and worker: long answers less what requests of one token cost."""
    rounds = 4 if settings.is_quick else 12
    short, number = STREAMS * rounds, STREAMS * (rounds // 4)
    a_request = [spent / short for spent in _spent(made, short, 1, seed)]
    spent = _spent(made, number, LONG, seed)
    ingress, worker = (
        (whole - once * number) / (number * (LONG - 1)) * 1e6 for whole, once in zip(spent, a_request, strict=True)
    )
    return ingress, worker


def _spent(made: Cluster, num_requests: int, output_len: int, seed: int) -> list[float]:
    """CPU seconds of ingress and worker."""
    pids = [made.ingress.process.pid, made.workers[0].process.pid]
    before = [cpu_s(pid) for pid in pids]
    client.measure(made.ingress, STREAMS, num_requests, Shape(input_len=16, output_len=output_len), seed=seed)
    return [cpu_s(pid) - once for pid, once in zip(pids, before, strict=True)]
