"""dyn://: tokens a second of two workers against one, each with as many sequences at once as it takes."""

from __future__ import annotations

from benchmarks import client
from benchmarks.dist_cluster import cluster, mocker_words
from benchmarks.row import Row
from benchmarks.settings import Settings
from runner.bench.workload import Shape

AT_ONCE, PER_WORKER = 64, 16
BAR = 1.9


def measure(settings: Settings) -> list[Row]:
    """One row."""
    one, two = (_rates(settings, number) for number in (1, 2))
    ratio = client.median(two) / client.median(one)
    return [
        Row(
            what=f"tokens/s of 2 workers against 1, {PER_WORKER} sequences each, {AT_ONCE} requests at once",
            ours=client.spread_text(two, "tokens/s"),
            rival=f"{client.spread_text(one, 'tokens/s')} (1 worker)",
            ratio=f"{ratio:.2f}",
            bar=f">= {BAR:g}x",
            is_met=ratio >= BAR,
        )
    ]


def _rates(settings: Settings, num_workers: int) -> list[float]:
    words = mocker_words(settings, "dist_throughput", max_num_seqs=PER_WORKER, decode_base_us=20_000.0)
    with cluster(settings, num_workers, words) as made:
        shape = Shape(input_len=16, output_len=50)
        client.measure(made.ingress, AT_ONCE, AT_ONCE, shape, seed=99)
        points = [
            client.measure(made.ingress, AT_ONCE, AT_ONCE * 3, shape, seed=seed) for seed in range(settings.repeats)
        ]
    return [point.output_tokens_per_s for point in points]
