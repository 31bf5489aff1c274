"""Measuring while nobody else computes: wait for idle cores, and measure again what other programs disturbed.

A step of llama.cpp waits for its slowest thread, so one program on one core of two costs not half, but a factor of ten
or more. What counts as disturbed is the CPU time of others, never the figure. Uses psutil; knows no server.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil

T = TypeVar("T")

IDLE_ENOUGH = 0.05
"""Share of all cores that other programs may use before a measurement."""
DISTURBED = 0.04
"""The same while it runs."""
_WAIT_S = 60.0
_TRIES = 12


def undisturbed(measure: Callable[[], T], pids: Sequence[int] = ()) -> T:
    """What `measure` returns, run again while programs beside us and the trees of `pids` took part in it; bounded."""
    for left in range(_TRIES, 0, -1):
        _wait()
        wall, before = time.monotonic(), _others_s(pids)
        result = measure()
        share = (_others_s(pids) - before) / ((time.monotonic() - wall) * (os.cpu_count() or 1))
        if share <= DISTURBED:
            return result
        print(f"    other programs took {share:.0%} of the machine; {left - 1} tries left", file=sys.stderr, flush=True)
    print("    kept, though disturbed", file=sys.stderr, flush=True)
    return result


def _wait() -> None:
    deadline = time.monotonic() + _WAIT_S
    while psutil.cpu_percent(interval=0.5) > 100 * IDLE_ENOUGH and time.monotonic() < deadline:
        pass


def _others_s(pids: Sequence[int]) -> float:
    """CPU seconds of all programs but us, our ended children, and the trees of `pids`."""
    total = psutil.cpu_times()
    busy = total.user + total.nice + total.system + getattr(total, "irq", 0.0) + getattr(total, "softirq", 0.0)
    ours = psutil.Process()
    times = ours.cpu_times()
    own = times.user + times.system + times.children_user + times.children_system
    for pid in pids:
        own += _tree_s(psutil.Process(pid))
    return float(busy - own)


def _tree_s(root: psutil.Process) -> float:
    seconds = 0.0
    for process in [root, *root.children(recursive=True)]:
        times = process.cpu_times()
        seconds += times.user + times.system
    return seconds
