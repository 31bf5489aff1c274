"""Metrics of several worker processes: each writes its snapshot into one private folder, any of them reads all.

What others count is at most WRITE_EVERY_S old. Counters of a worker that died are kept, its gauges are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec

from runner.metrics import FamilySnapshot, Registry, add_up

WRITE_EVERY_S = 0.5
_DEAD = "ended.json"
_decode = msgspec.json.Decoder(list[FamilySnapshot]).decode


class SharedMetrics:
    """One worker's side: its own file, and the sum of all."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self._folder = folder
        self._registry = registry
        self._file = file_of(folder, os.getpid())
        self._written = b""

    def snapshot_all(self) -> list[FamilySnapshot]:
        """The sum over this process, now, and all others, as they last wrote."""
        others = [path for path in sorted(self._folder.glob("*.json")) if path != self._file]
        return add_up([self._registry.snapshot(), *map(_read, others)])

    async def keep_writing(self) -> None:
        """Until cancelled; writes once more at the end."""
        try:
            while True:
                self._write()
                await asyncio.sleep(WRITE_EVERY_S)
        finally:
            self._write()

    def _write(self) -> None:
        data = msgspec.json.encode(self._registry.snapshot())
        if data != self._written:
            _replace(self._file, data)
            self._written = data


def file_of(folder: Path, pid: int) -> Path:
    """Where a worker writes."""
    return folder / f"worker-{pid}.json"


def keep_counters(folder: Path, pid: int) -> None:
    """A worker has ended: what it counted stays in the sum, what it had running does not."""
    path = file_of(folder, pid)
    counted = [family for family in _read(path) if family.kind != "gauge"]
    if counted:
        _replace(folder / _DEAD, msgspec.json.encode(add_up([_read(folder / _DEAD), counted])))
    path.unlink(missing_ok=True)


def _read(path: Path) -> list[FamilySnapshot]:
    """Nothing for a file that is not there (any more)."""
    with contextlib.suppress(FileNotFoundError):
        return _decode(path.read_bytes())
    return []


def _replace(path: Path, data: bytes) -> None:
    """Readers see the old file or the new one, never half of it."""
    fresh = path.with_suffix(".tmp")
    with contextlib.suppress(FileNotFoundError):  # the parent has removed the folder: all is over
        fresh.write_bytes(data)
        fresh.replace(path)
