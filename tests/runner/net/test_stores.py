"""Both stores keep the same promises; etcd also through restarts and a wipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runner.net.etcd import EtcdStore
from runner.net.folder import FolderStore
from runner.net.store import Change, Store, StoreUnavailable
from tests.runner.net import daemons


class Watcher:
    """What a watch has told so far."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.known: dict[str, bytes] = {}
        self.deletes = 0
        self._task = asyncio.create_task(self._run(store, prefix))

    async def _run(self, store: Store, prefix: str) -> None:
        async with contextlib.aclosing(store.watch(prefix)) as changes:
            async for key, value in changes:
                if not key:
                    continue
                if value is None:
                    self.deletes += 1
                    self.known.pop(key, None)
                else:
                    self.known[key] = value

    async def until(self, known: dict[str, bytes], timeout_s: float = 10) -> None:
        async with asyncio.timeout(timeout_s):
            while self.known != known:
                assert not self._task.done()
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


@pytest.fixture(params=["folder", pytest.param("etcd", marks=pytest.mark.dist)])
async def stores(request: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """make() -> a store on the same place."""
    made: list[Store] = []
    daemon = None
    if request.param == "etcd":
        daemon = daemons.etcd(tmp_path / "etcd")
        daemon.start()

    def make() -> Store:
        if daemon is not None:
            made.append(EtcdStore((f"127.0.0.1:{daemon.port}",), lease_s=2))
        else:
            made.append(FolderStore(tmp_path / "folder", lease_s=1))
        return made[-1]

    yield make
    for store in made:
        await store.close()
    if daemon is not None:
        daemon.kill()


async def test_a_watch_tells_what_is_there_and_what_changes(stores: Any) -> None:
    lease = await stores().lease()
    await lease.put("v1/a/1", b"one")
    await lease.put("v2/other", b"x")
    watcher = Watcher(stores(), "v1/")
    await watcher.until({"v1/a/1": b"one"})
    await lease.put("v1/b/é", b"two")
    await lease.put("v1/a/1", b"changed")
    await watcher.until({"v1/a/1": b"changed", "v1/b/é": b"two"})
    await lease.revoke()
    await watcher.until({})
    await lease.revoke()
    await watcher.close()


async def test_a_lease_outlives_its_time_and_ends_when_nobody_keeps_it(stores: Any) -> None:
    lease = await stores().lease()
    watcher = Watcher(stores(), "k")
    await lease.put("k", b"v")
    await watcher.until({"k": b"v"})
    await asyncio.sleep(2.5)
    assert watcher.known and not watcher.deletes
    lease._task.cancel()  # as if killed
    await watcher.until({})
    await watcher.close()


async def test_a_folder_that_does_not_change_is_looked_at_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, num_scans = FolderStore(tmp_path / "folder"), 0
    scan = FolderStore._scan

    def counted(self: FolderStore, prefix: str, known: dict[str, tuple[int, bytes]]) -> list[Change]:
        nonlocal num_scans
        num_scans += 1
        return scan(self, prefix, known)

    lease = await store.lease()
    await lease.put("k/1", b"v")
    await asyncio.sleep(0.1)  # what is just written may change again within a tick of the clock
    monkeypatch.setattr(FolderStore, "_scan", counted)
    watchers = [Watcher(FolderStore(tmp_path / "folder"), "k") for _ in range(3)]
    await asyncio.sleep(1.2)
    assert 3 <= num_scans <= 3 * 4
    await lease.put("k/2", b"v")
    for watcher in watchers:
        await watcher.until({"k/1": b"v", "k/2": b"v"})
        await watcher.close()
    await store.close()


async def test_clocks_that_nobody_touches_any_more_go(tmp_path: Path) -> None:
    clocks = tmp_path / ".clocks"
    clocks.mkdir()
    old = clocks / "old"
    old.touch()
    os.utime(old, (1, 1))
    store = FolderStore(tmp_path)
    lease = await store.lease()
    await lease.put("k", b"v")
    assert len(await store.entries("k")) == 1
    (clock,) = clocks.iterdir()
    assert clock.name != "old"
    clock.unlink()  # another machine thought it was old
    assert len(await store.entries("k")) == 1
    await store.close()
    assert not list(clocks.iterdir())


async def test_a_store_that_is_not_there_says_where_it_looked() -> None:
    store = EtcdStore((f"127.0.0.1:{daemons.free_port()}",))
    with pytest.raises(StoreUnavailable, match=r"etcd at http://127\.0\.0\.1:\d+ does not answer"):
        await store.lease()
    await store.close()


@pytest.mark.dist
async def test_etcd_restarted_deletes_nothing_and_wiped_gets_everything_again(tmp_path: Path) -> None:
    daemon = daemons.etcd(tmp_path / "etcd")
    daemon.start()
    store = EtcdStore((f"127.0.0.1:{daemon.port}",), lease_s=2)
    other = EtcdStore((f"127.0.0.1:{daemon.port}",))
    try:
        lease = await store.lease()
        await lease.put("k", b"v")
        watcher = Watcher(other, "k")
        await watcher.until({"k": b"v"})
        daemon.kill()
        await asyncio.sleep(1)
        assert watcher.known and not watcher.deletes
        daemon.start()
        await asyncio.sleep(2)
        assert watcher.known and not watcher.deletes
        daemon.kill()
        shutil.rmtree(tmp_path / "etcd")
        daemon.start()
        await asyncio.sleep(3)
        await watcher.until({"k": b"v"})
        await watcher.close()
    finally:
        await store.close()
        await other.close()
        daemon.kill()
