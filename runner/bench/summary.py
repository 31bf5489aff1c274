"""Samples become one Point: throughput, percentiles, errors. Repeats become their median. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from runner.bench.records import Point, Sample, Spread


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the sorted values lie, interpolated (numpy's default method)."""
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def spread(values_s: Iterable[float]) -> Spread | None:
    """Mean and percentiles in milliseconds; None of nothing."""
    ordered = sorted(value * 1e3 for value in values_s)
    if not ordered:
        return None
    return Spread(
        mean=statistics.fmean(ordered),
        p50=percentile(ordered, 0.50),
        p90=percentile(ordered, 0.90),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


def summarize(load: str, samples: Sequence[Sample], *, cpu_s: float, server: dict[str, float] | None = None) -> Point:
    """Sum up one load. `cpu_s` is the processor time that this process used meanwhile."""
    good = [sample for sample in samples if sample.error is None]
    begin = min((sample.start_s for sample in samples), default=0.0)
    wall_s = max((sample.end_s for sample in samples), default=0.0) - begin
    output_tokens = sum(sample.output_tokens for sample in good)
    per_s = 1.0 / wall_s if wall_s > 0 else 0.0
    return Point(
        load=load,
        num_requests=len(samples),
        num_errors=len(samples) - len(good),
        wall_s=wall_s,
        output_tokens=output_tokens,
        prompt_tokens=sum(sample.prompt_tokens for sample in good),
        output_tokens_per_s=output_tokens * per_s,
        requests_per_s=len(good) * per_s,
        ttft_ms=spread(sample.first_s - sample.start_s for sample in good if sample.first_s is not None),
        tpot_ms=spread(
            (sample.end_s - sample.first_s) / (sample.output_tokens - 1)
            for sample in good
            if sample.first_s is not None and sample.output_tokens > 1
        ),
        itl_ms=spread(gap for sample in good for gap in sample.gaps_s),
        e2e_ms=spread(sample.end_s - sample.start_s for sample in good),
        client_cpu_us_per_token=cpu_s * 1e6 / output_tokens if output_tokens else 0.0,
        is_counted=all(sample.is_counted for sample in good),
        errors=dict(Counter(sample.error for sample in samples if sample.error is not None).most_common(5)),
        server=server or {},
    )


def median_point(points: Sequence[Point]) -> Point:
    """Each number is the median over repeats; errors are added up."""
    if len(points) == 1:
        return points[0]
    merged = _median([msgspec.to_builtins(point) for point in points])
    errors = Counter[str]()
    for point in points:
        errors.update(point.errors)
    merged |= {"errors": dict(errors), "num_errors": sum(point.num_errors for point in points)}
    return msgspec.convert(merged, Point, strict=False)


def _median(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict) and all(isinstance(value, dict) for value in values):
        shared = [key for key in first if all(key in value for value in values)]
        return {key: _median([value[key] for value in values]) for key in shared}
    if isinstance(first, bool):
        return all(values)
    if not isinstance(first, int | float):
        return first
    middle = statistics.median(values)
    return int(middle) if isinstance(first, int) else middle
