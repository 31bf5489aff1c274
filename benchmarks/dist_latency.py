"""dyn://: what the wire adds to a local out=mocker: 64 streams of 25 tokens a second, first token and each after it."""

from __future__ import annotations

from benchmarks import client
from benchmarks.dist_cluster import cluster, mocker_words
from benchmarks.row import Row
from benchmarks.servers import Server, llmrun
from benchmarks.settings import Settings
from runner.bench.records import Point
from runner.bench.workload import Shape

STREAMS, TOKENS = 64, 100
FIRST_BAR_MS, TOKEN_BAR_MS = 3.0, 2.0
_STEP_US = 40_000.0
"""25 tokens a second, however many streams."""


def measure(settings: Settings) -> list[Row]:
    """Both servers are up at once and asked in turn."""
    words = ["--max-running", str(STREAMS)]
    words += mocker_words(
        settings, "dist_latency", decode_base_us=_STEP_US, decode_us_per_seq=0.0, prefill_us_per_token=0.0
    )
    with llmrun(settings, "demo", *words, out="mocker") as local, cluster(settings, 1, words) as made:
        pairs = []
        for server in (local, made.ingress):
            _point(server, 99)
        for repeat in range(settings.repeats):
            pairs.append((_point(local, repeat), _point(made.ingress, repeat)))
    firsts = [_first(there) - _first(here) for here, there in pairs]
    tokens = [_gap(there) - _gap(here) for here, there in pairs]
    return [
        _row("first token, p50", firsts, FIRST_BAR_MS, [_first(here) for here, _ in pairs]),
        _row("token, p99", tokens, TOKEN_BAR_MS, [_gap(here) for here, _ in pairs]),
    ]


def _point(server: Server, seed: int) -> Point:
    return client.measure(server, STREAMS, STREAMS, Shape(input_len=16, output_len=TOKENS), seed=seed)


def _first(point: Point) -> float:
    assert point.ttft_ms is not None
    return point.ttft_ms.p50


def _gap(point: Point) -> float:
    assert point.itl_ms is not None
    return point.itl_ms.p99


def _row(what: str, added: list[float], bar_ms: float, local: list[float]) -> Row:
    """Not measured where the local figures alone, one against the other, differ by more than the bar."""
    is_quiet = max(local) - min(local) <= bar_ms
    return Row(
        what=f"added latency, {what}, {STREAMS} streams x 25 tokens/s",
        ours=client.spread_text(added, "ms"),
        rival=f"{client.spread_text(local, 'ms')} (in=http out=mocker)",
        bar=f"<= {bar_ms:g} ms",
        is_met=client.median(added) <= bar_ms if is_quiet else None,
        notes=[] if is_quiet else [f"{what}: the local figures alone differ by more than the bar: other programs ran"],
    )
