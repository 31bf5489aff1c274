"""dyn://: 1,000 instances of one model, registered in a real etcd and in a folder: watching, choosing, memory.

The instances are records only; nobody answers behind them. Changes are timed twice: what taking one into the pool
costs, and from the write to the store to the pool; a folder is polled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.processes import rss_mb
from benchmarks.row import Row, skipped
from benchmarks.settings import Settings
from runner.engines.remote_pool import Worker, WorkerPool
from runner.errors import LlmrunError
from runner.net.addresses import Address
from runner.net.client import NetClient
from runner.net.records import INSTANCES, Instance, decode_instance, encode_instance, instance_keys
from runner.net.routing import Router
from runner.net.store import Lease, Store

NUMBER, PICKS = 1_000, 2_000
BAR_MS = 1.0
_ADDRESS = Address("bench", "pool", "generate")


def measure(settings: Settings) -> list[Row]:
    """Rows for both stores and for every way of routing."""
    del settings
    return asyncio.run(_measure())


async def _measure() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="dist-") as folder:
        for name, open_store in (("etcd", _etcd), ("folder", _folder)):
            try:
                async with open_store(Path(folder) / name) as stores:
                    rows += await _watching(name, *stores)
            except LlmrunError as error:
                rows.append(skipped(f"{NUMBER:,} instances in {name}", f"<= {BAR_MS:g} ms p99", str(error)))
    return rows + await _routing()


@contextlib.asynccontextmanager
async def _folder(at: Path) -> AsyncIterator[tuple[Store, Store]]:
    from runner.net.folder import FolderStore

    writer, reader = FolderStore(at), FolderStore(at)
    try:
        yield writer, reader
    finally:
        await writer.close()


@contextlib.asynccontextmanager
async def _etcd(at: Path) -> AsyncIterator[tuple[Store, Store]]:
    """Raises LlmrunError where there is no etcd."""
    from benchmarks.dist_daemons import etcd
    from runner.net.etcd import EtcdStore

    with etcd(at) as url:
        writer, reader = EtcdStore((url,)), EtcdStore((url,))
        try:
            yield writer, reader
        finally:
            await writer.close()
            await reader.close()


def _instance(number: int) -> Instance:
    target = f"10.0.{number // 250}.{number % 250}:4000/{number:x}/{_ADDRESS.path}"
    return Instance(address=_ADDRESS, id=number, plane="tcp", target=target, codec="msgpack")


async def _put(lease: Lease, number: int) -> None:
    key, value = instance_keys(_ADDRESS, number)[0], encode_instance(_instance(number))[0]
    await lease.put(key, value)


async def _watching(name: str, writer: Store, reader: Store) -> list[Row]:
    """CPU of this process from the change to the pool, and the wall time of one change from put to pool."""
    lease = await writer.lease()
    for number in range(1, NUMBER + 1):
        await _put(lease, number)
    before_mb = rss_mb(os.getpid())
    pool, seen = WorkerPool(NetClient("127.0.0.1", ""), Router("kv")), asyncio.Event()
    spent_ms: list[float] = []
    task = asyncio.create_task(_follow(reader, pool, seen, spent_ms))
    start = time.perf_counter()
    while len(pool.workers) < NUMBER:
        seen.clear()
        await seen.wait()
    snapshot_ms = (time.perf_counter() - start) * 1e3
    after_mb = rss_mb(os.getpid())
    whole_ms, spent_ms[:] = [], []
    for number in range(NUMBER + 1, NUMBER + 101):
        seen.clear()
        start = time.perf_counter()
        await _put(lease, number)
        await seen.wait()
        whole_ms.append((time.perf_counter() - start) * 1e3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return [
        Row(
            what=f"{NUMBER:,} instances in {name}: a change taken into the pool, CPU p99",
            ours=f"{_p99(spent_ms):.3f} ms",
            bar=f"<= {BAR_MS:g} ms",
            is_met=_p99(spent_ms) <= BAR_MS,
            notes=[
                f"{name}: snapshot of {NUMBER:,} in {snapshot_ms:.0f} ms, {after_mb - before_mb:+.1f} MB; "
                f"from put to pool {statistics.median(whole_ms):.1f} ms median, {_p99(whole_ms):.1f} ms p99, "
                "which holds the write to the store" + (", and a look every 50 ms" if name == "folder" else "")
            ],
        )
    ]


async def _follow(reader: Store, pool: WorkerPool, seen: asyncio.Event, spent_ms: list[float]) -> None:
    """What remote_models.py does with an instance, without its card."""
    async with contextlib.aclosing(reader.watch(INSTANCES)) as changes:
        async for change in changes:
            if change.value is None or not change.key:
                continue
            start = time.thread_time()
            instance = decode_instance(change.key, change.value)
            pool.add(Worker(instance, is_own=True, max_running=64))
            spent_ms.append((time.thread_time() - start) * 1e3)
            seen.set()


async def _routing() -> list[Row]:
    """One choice among all, prompts of 2,000 tokens of which half are shared."""
    rng, rows = random.Random(5), []
    prefixes = [[rng.randrange(32_000) for _ in range(1_000)] for _ in range(50)]
    prompts = [rng.choice(prefixes) + [rng.randrange(32_000) for _ in range(1_000)] for _ in range(PICKS)]
    for mode in ("round-robin", "random", "least-loaded", "kv"):
        before_mb = rss_mb(os.getpid())
        pool = WorkerPool(NetClient("127.0.0.1", ""), Router(mode))
        for number in range(1, NUMBER + 1):
            pool.add(Worker(_instance(number), is_own=True, max_running=64))
        spent_ms = [_choose(pool, prompt) for prompt in prompts]
        rows.append(
            Row(
                what=f"routing decision among {NUMBER:,}, {mode}, CPU p99",
                ours=f"{_p99(spent_ms):.3f} ms (median {statistics.median(spent_ms):.3f})",
                bar=f"<= {BAR_MS:g} ms",
                is_met=_p99(spent_ms) <= BAR_MS,
                notes=[f"{mode}: pool and {PICKS:,} prompts remembered {rss_mb(os.getpid()) - before_mb:+.1f} MB"],
            )
        )
    return rows


def _choose(pool: WorkerPool, prompt: list[int]) -> float:
    """Milliseconds of CPU: the event loop is held no longer, whoever else wants the machine."""
    start = time.thread_time()
    worker = pool.pick(prompt, set())
    assert worker is not None
    pool.enter(worker, pool.router.num_blocks(prompt))
    return (time.thread_time() - start) * 1e3


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]
