"""How much memory a program may still take on this machine: the system's, within cgroup limits (v1 and v2)."""

from __future__ import annotations

from pathlib import Path


def free_host_bytes(root: Path = Path("/")) -> int:
    """Memory that may still be used: MemAvailable, or what the cgroup grants if that is less."""
    free = _mem_available(root)
    for limit, used in _cgroup_limits(root):
        free = min(free, max(0, limit - used))
    return free


def _mem_available(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 8 * 2**30  # not Linux: a size that most machines have


def _cgroup_limits(root: Path) -> list[tuple[int, int]]:
    base = root / "sys/fs/cgroup"
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        mounts = (base / "memory",) if controllers == "memory" else () if controllers else (base, base / "unified")
        for folder in {mount / part for mount in mounts for part in (path.strip("/"), "")}:
            limit, used = _read(folder / names[0]), _read(folder / names[1])
            if limit.isdigit() and used.isdigit() and int(limit) < 2**60:
                found.append((int(limit), int(used)))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
