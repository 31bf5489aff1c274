"""dyn://: what the wire adds to a local out=mocker: 64 streams of 25 tokens a second, first token and each after it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks import client
from benchmarks.dist_cluster import Cluster, cluster, mocker_words
from benchmarks.quiet import undisturbed
from benchmarks.row import Row
from benchmarks.servers import Server, llmrun
from benchmarks.settings import Settings
from runner.bench.records import Point
from runner.bench.workload import Shape

Load = Callable[[Server, int], Point]

STREAMS, TOKENS = 64, 100
SHAPE = Shape(input_len=16, output_len=TOKENS)
FIRST_BAR_MS, TOKEN_BAR_MS = 3.0, 2.0
_STEP_US = 40_000.0
"""25 tokens a second, however many streams."""
_LASTS_S = TOKENS * _STEP_US / 1e6


def measure(settings: Settings) -> list[Row]:
    """Both servers are up at once and asked in turn."""
    words = ["--max-running", str(2 * STREAMS)]
    words += mocker_words(
        settings, "dist_latency", decode_base_us=_STEP_US, decode_us_per_seq=0.0, prefill_us_per_token=0.0
    )
    with llmrun(settings, "demo", *words, out="mocker") as local, cluster(settings, 1, words) as made:
        return [row for name, load in _LOADS.items() for row in _rows(settings, name, load, local, made)]


def _rows(settings: Settings, name: str, load: Load, local: Server, made: Cluster) -> list[Row]:
    both = (local, made.ingress)
    for server in both:
        _at_once(server, 99)
    pids = [server.process.pid for server in (*both, *made.workers)]
    pairs = [
        tuple(undisturbed(partial(load, server, repeat), pids) for server in both) for repeat in range(settings.repeats)
    ]
    firsts = [_first(there) - _first(here) for here, there in pairs]
    tokens = [_gap(there) - _gap(here) for here, there in pairs]
    return [
        _row(f"{name}: first token, p50", firsts, FIRST_BAR_MS, [_first(here) for here, _ in pairs]),
        _row(f"{name}: token, p99", tokens, TOKEN_BAR_MS, [_gap(here) for here, _ in pairs]),
    ]


def _spread(server: Server, seed: int) -> Point:
    """Begun one after the other, as many as end: 64 run."""
    return client.measure_open(server, STREAMS / _LASTS_S, 5 * STREAMS, SHAPE, seed=seed)


def _at_once(server: Server, seed: int) -> Point:
    """All begun in one instant, so that the first tokens wait for 64 requests to be read."""
    return client.measure(server, STREAMS, STREAMS, SHAPE, seed=seed)


_LOADS: dict[str, Load] = {"begun evenly": _spread, "begun at once": _at_once}


def _first(point: Point) -> float:
    assert point.ttft_ms is not None
    return point.ttft_ms.p50


def _gap(point: Point) -> float:
    assert point.itl_ms is not None
    return point.itl_ms.p99


def _row(what: str, added: list[float], bar_ms: float, local: list[float]) -> Row:
    """A note says where the local figures alone, one against the other, differ by more than the bar."""
    is_steady = max(local) - min(local) <= bar_ms
    return Row(
        what=f"added latency, {what}, {STREAMS} streams x 25 tokens/s",
        ours=client.spread_text(added, "ms"),
        rival=f"{client.spread_text(local, 'ms')} (in=http out=mocker)",
        bar=f"<= {bar_ms:g} ms",
        is_met=client.median(added) <= bar_ms,
        notes=[] if is_steady else [f"{what}: the local figures alone differ by more than the bar"],
    )
