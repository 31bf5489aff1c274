"""ThreadGovernor: how many threads compute a step. All of them while the cores are ours, fewer while others use them.

ggml's threads wait for each other several times a layer by spinning. Where another program holds a core, each of those
waits costs a time slice: two threads on two busy cores are 10 to 30 times slower than one.
Knows of a context only how to set its number of threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_WINDOW_S = 0.1
_CROWDED = 0.8
"""Share of the time of its threads that a step must get; spinning threads get all of it on cores of their own."""
_LOOK_AGAIN_S = 1.0
_IDLE_ENOUGH = 0.7
_STAT = Path("/proc/stat")


class ThreadGovernor:
    """Wrap each step in `start_step` and `end_step`. Costs two microseconds a step."""

    def __init__(
        self,
        most: int,
        set_threads: Callable[[int], None],
        *,
        is_fixed: bool = False,
        idle_s: Callable[[], float | None] | None = None,
    ) -> None:
        """`most`: threads on a quiet machine; `is_fixed`: the user chose them. `idle_s`: see idle_seconds."""
        self.most = self.threads = most
        self._set_threads = set_threads
        self._idle_s = idle_s or idle_seconds
        self._is_off = is_fixed or most == 1 or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
        self._wall_s = self._cpu_s = 0.0
        self._looked = (0.0, 0.0)

    def start_step(self) -> None:
        """Just before a step."""
        self._started = (time.perf_counter(), time.process_time())

    def end_step(self) -> None:
        """Just after it; may change the number of threads of the next one."""
        if self._is_off:
            return
        self._wall_s += time.perf_counter() - self._started[0]
        self._cpu_s += time.process_time() - self._started[1]
        if self._wall_s < _WINDOW_S:
            return
        cores = self._cpu_s / self._wall_s
        self._wall_s = self._cpu_s = 0.0
        if self.threads > 1 and cores < _CROWDED * self.threads:
            self._change(max(1, int(cores)))
        elif self.threads < self.most:
            self._look_for_idle_cores()

    def _look_for_idle_cores(self) -> None:
        now = time.monotonic()
        since, idle_then = self._looked
        if now - since < _LOOK_AGAIN_S or (idle := self._idle_s()) is None:
            return
        num_idle = (idle - idle_then) / (now - since)
        self._looked = now, idle
        if num_idle >= _IDLE_ENOUGH:
            self._change(min(self.most, self.threads + int(num_idle + 1 - _IDLE_ENOUGH)))

    def _change(self, threads: int) -> None:
        self.threads = threads
        self._set_threads(threads)
        self._looked = time.monotonic(), self._idle_s() or 0.0


def idle_seconds() -> float | None:
    """Seconds that cores of this machine were idle since boot, added up; None where /proc/stat is not there."""
    try:
        fields = _STAT.read_text(encoding="ascii").split(maxsplit=6)
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # idle + iowait
    except (OSError, ValueError, IndexError):
        return None
