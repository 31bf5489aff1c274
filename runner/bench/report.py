"""Showing points: a table for people, JSON for programs. Knows nothing of how they were measured."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from runner.bench.records import Point, Spread

_HEAD = (
    "load",
    "reqs",
    "errors",
    "out tok/s",
    "req/s",
    "TTFT p50/p90/p99 ms",
    "ITL p50/p99 ms",
    "TPOT ms",
    "E2E p50 s",
)


def machine() -> dict[str, Any]:
    """What every number must be read with: processor, cores, system, Python."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def as_json(points: Sequence[Point], about: dict[str, Any]) -> str:
    """One JSON object: what was measured, the machine, the points."""
    data = {**about, "machine": machine(), "points": msgspec.to_builtins(list(points))}
    return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()


def as_text(points: Sequence[Point], title: str) -> str:
    """A table, one row a load, with notes on what a reader could misunderstand."""
    rows = [_HEAD, *map(_row, points)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [title, "  ".join(f"{key} {value}" for key, value in machine().items()), ""]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += _notes(points)
    return "\n".join(lines)


def _row(point: Point) -> tuple[str, ...]:
    return (
        point.load,
        str(point.num_requests),
        str(point.num_errors),
        f"{point.output_tokens_per_s:,.1f}",
        f"{point.requests_per_s:,.2f}",
        _numbers(point.ttft_ms, "p50", "p90", "p99"),
        _numbers(point.itl_ms, "p50", "p99"),
        _numbers(point.tpot_ms, "p50"),
        "-" if point.e2e_ms is None else f"{point.e2e_ms.p50 / 1e3:.2f}",
    )


def _numbers(spread: Spread | None, *names: str) -> str:
    return "-" if spread is None else " / ".join(f"{getattr(spread, name):.1f}" for name in names)


def _notes(points: Sequence[Point]) -> list[str]:
    cost = ", ".join(f"{point.client_cpu_us_per_token:.1f}" for point in points)
    notes = ["", f"processor time of this process: {cost} us per output token"]
    if not all(point.is_counted for point in points):
        notes.append("the server reports no usage: pieces of text were counted as tokens")
    for point in points:
        notes += [f"{point.load}: {count} x {message}" for message, count in point.errors.items()]
        if point.server:
            notes.append(f"{point.load}: " + ", ".join(f"{key} {value:,.4g}" for key, value in point.server.items()))
    return notes


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
