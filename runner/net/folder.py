"""Discovery in a folder that ingress and workers share: no daemon. A key is a file, its lease is the file's age.

Files are written under a hidden name and renamed, so that nobody reads half a file. Ages are compared with the clock of
the folder (a file that the reader touches, in a folder of its own): machines need not agree on the time. A key that
comes or goes changes the folder's time, which costs nothing to look at; all files are looked at now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import quote, unquote

from runner.net.store import LEASE_S, Change, Entry, StoreUnavailable

_POLL_S = 0.05
_SCAN_EVERY_S = 0.5
"""For leases that run out, and for shared disks that tell the folder's time late."""
_TICK_NS = 20_000_000
"""A file system's clock goes in steps: within one of them the folder may change again without another time."""
_CLOCKS = ".clocks"
_OLD_CLOCK_S = 60.0
_MAX_VALUE_BYTES = 64 << 20


class FolderStore:
    """See Store."""

    def __init__(self, folder: Path, *, lease_s: float = LEASE_S) -> None:
        self.folder = folder
        self.lease_s = lease_s
        self.where = f"the folder {folder}"
        self._leases: set[FolderLease] = set()
        self._clock: Path | None = None

    async def check(self, prefix: str) -> None:
        """See Store. A folder that is not there yet may come."""

    async def lease(self) -> FolderLease:
        """See Store."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"{self.where} cannot be made: {error.strerror}") from error
        lease = FolderLease(self, secrets.randbits(62) | 1)
        self._leases.add(lease)
        return lease

    async def close(self) -> None:
        """See Store."""
        for lease in list(self._leases):
            await lease.revoke()
        if self._clock is not None:
            with contextlib.suppress(OSError):
                self._clock.unlink(missing_ok=True)

    def forget(self, lease: FolderLease) -> None:
        """A lease that is over."""
        self._leases.discard(lease)

    async def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        """See Store."""
        known: dict[str, tuple[int, bytes]] = {}
        is_told = False
        seen_at, scan_at = None, 0.0
        loop = asyncio.get_running_loop()
        while True:
            changed_at = self._changed_at()
            if changed_at is None or changed_at != seen_at or loop.time() >= scan_at:
                seen_at, scan_at = changed_at, loop.time() + _SCAN_EVERY_S
                with contextlib.suppress(OSError):
                    for change in self._scan(prefix, known):
                        yield change
            if not is_told:
                is_told = True
                yield Change("", b"")
            await asyncio.sleep(_POLL_S)

    def _changed_at(self) -> int | None:
        """When a key last came or went; None where it may be now, or cannot be told."""
        try:
            changed_at = self.folder.stat().st_mtime_ns
        except OSError:
            return None
        return changed_at if abs(time.time_ns() - changed_at) > _TICK_NS else None

    def _scan(self, prefix: str, known: dict[str, tuple[int, bytes]]) -> list[Change]:
        """Differences to `known`, which it brings up to date."""
        changes: list[Change] = []
        seen: set[str] = set()
        if not self.folder.is_dir():
            return changes
        now = self._now()
        for entry in os.scandir(self.folder):
            key = unquote(entry.name)
            if entry.name.startswith(".") or not key.startswith(prefix):
                continue
            with contextlib.suppress(OSError):  # one that cannot be read hides no other
                if not entry.is_file():
                    continue
                status = entry.stat()
                if now - status.st_mtime > self.lease_s or status.st_size > _MAX_VALUE_BYTES:
                    continue
                seen.add(key)
                if key in known and known[key][0] == status.st_ino:
                    continue
                value = Path(entry.path).read_bytes()
                is_new = key not in known or known[key][1] != value
                known[key] = (status.st_ino, value)
                if is_new:
                    changes.append(Change(key, value))
        for key in [key for key in known if key not in seen]:
            del known[key]
            changes.append(Change(key, None))
        return changes

    async def entries(self, prefix: str) -> list[Entry]:
        """See Store."""
        try:
            found = self._scan(prefix, {})
            now = self._now() if found else 0.0
            ages = {change.key: now - self.path(change.key).stat().st_mtime for change in found}
        except OSError as error:
            raise StoreUnavailable(f"{self.where} cannot be read: {error.strerror}") from error
        return [Entry(key, value or b"", self.lease_s, max(0.0, ages[key])) for key, value in found]

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / quote(key, safe="")

    def _now(self) -> float:
        """Of the folder's own clock."""
        if self._clock is None:
            self._clock = self._make_clock()
        try:
            os.utime(self._clock)
        except FileNotFoundError:
            self._clock = self._make_clock()
        return self._clock.stat().st_mtime

    def _make_clock(self) -> Path:
        """A file that only we touch; those that nobody has touched for long go."""
        folder = self.folder / _CLOCKS
        folder.mkdir(mode=0o700, exist_ok=True)
        clock = folder / secrets.token_hex(8)
        clock.touch()
        now = clock.stat().st_mtime
        for other in folder.iterdir():
            with contextlib.suppress(OSError):
                if now - other.stat().st_mtime > _OLD_CLOCK_S:
                    other.unlink()
        return clock


class FolderLease:
    """See Lease."""

    def __init__(self, store: FolderStore, lease_id: int) -> None:
        self.id = lease_id
        self._store = store
        self._values: dict[str, bytes] = {}
        self._is_over = False
        self._task = asyncio.create_task(self._keep_alive())

    async def put(self, key: str, value: bytes) -> None:
        """See Lease."""
        self._values[key] = value
        try:
            self._write(key, value)
        except OSError as error:
            raise StoreUnavailable(f"{self._store.where}: cannot write: {error.strerror}") from error

    def _write(self, key: str, value: bytes) -> None:
        path = self._store.path(key)
        hidden = path.with_name(f".{secrets.token_hex(8)}")
        hidden.write_bytes(value)
        hidden.replace(path)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._store.lease_s / 3)
            for key, value in self._values.items():
                with contextlib.suppress(OSError):
                    try:
                        os.utime(self._store.path(key))
                    except FileNotFoundError:
                        self._store.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                        self._write(key, value)

    async def revoke(self) -> None:
        """See Lease."""
        if self._is_over:
            return
        self._is_over = True
        self._task.cancel()
        await asyncio.wait({self._task})
        for key in self._values:
            with contextlib.suppress(OSError):
                self._store.path(key).unlink(missing_ok=True)
        self._store.forget(self)
