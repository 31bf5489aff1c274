"""How many threads an engine should compute with: the physical cores that this process may really have.

More threads than free cores cost a factor, not a percentage: every step waits for the slowest thread (measured, one
busy core of two: 184 -> 55 tokens/s). Honours CPU affinity, SMT siblings and cgroup quotas (v1 and v2).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

_SYSTEM = Path("/")


def usable_cores(root: Path = _SYSTEM) -> int:
    """Physical cores within affinity and quota, at least 1. `root` is replaced by tests."""
    cores = physical_cores(_allowed_cpus(), root)
    quota = cgroup_quota(root)
    if quota is not None:
        cores = min(cores, int(quota))
    return max(1, cores)


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cpu_flags(root: Path = _SYSTEM) -> set[str]:
    """What the processors can do, as the kernel names it; nothing where the system does not say."""
    lines = _read(root / "proc/cpuinfo").splitlines()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":", 1)[-1].split()}


def physical_cores(cpus: set[int], root: Path = _SYSTEM) -> int:
    """Groups of SMT siblings among `cpus`; a CPU without topology counts as a core."""
    groups = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        groups.add(_read(topology) or str(cpu))
    return len(groups)


def cgroup_quota(root: Path = _SYSTEM) -> float | None:
    """CPUs' worth of time that the tightest cgroup on the way to the root grants, or None."""
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += _quotas(root / "sys/fs/cgroup", path, _quota_v2)
            quotas += _quotas(root / "sys/fs/cgroup/unified", path, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                quotas += _quotas(root / "sys/fs/cgroup" / mount, path, _quota_v1)
    return min(quotas, default=None)


def _quotas(mount: Path, path: str, read_quota: Callable[[Path], float | None]) -> list[float]:
    """Quotas of a cgroup and of all above it; in a container the mount itself may be our cgroup."""
    folder = mount / path.strip("/")
    found = []
    while True:
        quota = read_quota(folder)
        if quota is not None:
            found.append(quota)
        if folder == mount or mount not in folder.parents:
            return found
        folder = folder.parent


def _quota_v2(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
