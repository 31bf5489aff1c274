"""Percentiles, sums, medians of repeats, and how they are shown."""

from __future__ import annotations

import json

import pytest

from runner.bench.records import Sample
from runner.bench.report import as_json, as_text
from runner.bench.summary import median_point, percentile, spread, summarize


def _sample(start: float, first: float, end: float, tokens: int) -> Sample:
    return Sample(start_s=start, first_s=first, end_s=end, output_tokens=tokens, is_counted=True, gaps_s=[0.1, 0.3])


def test_percentiles_interpolate() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert percentile([1.0], 0.99) == 1.0
    found = spread([0.001 * i for i in range(101)])
    assert found is not None and (found.p50, found.p90, found.max) == pytest.approx((50.0, 90.0, 100.0))
    assert spread([]) is None


def test_a_point_counts_good_answers_and_names_errors() -> None:
    samples = [_sample(0, 1, 3, 5), _sample(1, 2, 4, 5), Sample(start_s=0, end_s=1, error="HTTP 503: full")]
    point = summarize("2 at once", samples, cpu_s=0.001)
    assert (point.num_requests, point.num_errors, point.errors) == (3, 1, {"HTTP 503: full": 1})
    assert (point.wall_s, point.output_tokens, point.output_tokens_per_s) == (4, 10, 2.5)
    assert point.ttft_ms is not None and point.ttft_ms.p50 == 1000
    assert point.tpot_ms is not None and point.tpot_ms.p50 == 500
    assert point.client_cpu_us_per_token == pytest.approx(100)


def test_only_errors_is_a_point_too() -> None:
    point = summarize("1 at once", [Sample(start_s=0, end_s=0, error="x")], cpu_s=0.0)
    assert (point.output_tokens_per_s, point.ttft_ms) == (0.0, None)
    assert "1 x x" in as_text([point], "t")


def test_repeats_become_medians_and_errors_add_up() -> None:
    points = [summarize("1 at once", [_sample(0, 1, end, 4)], cpu_s=0.0, server={"a": end}) for end in (2, 3, 9)]
    failed = summarize("1 at once", [Sample(start_s=0, end_s=1, error="x")], cpu_s=0.0)
    merged = median_point(points)
    assert (merged.wall_s, merged.server["a"], merged.is_counted) == (3, 3, True)
    assert median_point([*points, failed]).num_errors == 1


def test_json_holds_machine_and_points() -> None:
    point = summarize("1 at once", [_sample(0, 1, 3, 5)], cpu_s=0.0)
    data = json.loads(as_json([point], {"target": "t"}))
    assert data["target"] == "t" and data["points"][0]["output_tokens"] == 5 and data["machine"]["cores"]
