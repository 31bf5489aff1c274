"""Looking at processes from outside: CPU time, memory, children, who is left. Uses psutil; starts nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def cpu_s(pid: int) -> float:
    """User and system time of one process, without its children."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def rss_mb(pid: int) -> float:
    """Resident memory of one process."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def children(pid: int) -> list[int]:
    """All descendants that are alive."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True) if is_alive(child.pid)]
    except psutil.NoSuchProcess:
        return []


def engine_child(pid: int) -> int:
    """The engine's process under a launcher: its largest descendant. Raises RuntimeError if it has none."""
    found = children(pid)
    if not found:
        raise RuntimeError(f"process {pid} has no child")
    return max(found, key=rss_mb)


def is_alive(pid: int) -> bool:
    """Whether a process still runs (a zombie does not)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def seconds_until(is_true: Callable[[], bool], limit_s: float) -> float | None:
    """How long until it is true, looked at every 10 ms; None if the limit came first."""
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        if is_true():
            return time.monotonic() - start
        time.sleep(0.01)
    return None
