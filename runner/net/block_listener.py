"""An ingress' end of the event plane: workers' KV events go to the routers of their models.

Owns the subscriptions, and who has been heard without a gap. A worker that has not (an event was lost) is still heard,
and its router goes back to prediction. NATS may come and go: until then nothing is heard, which is prediction too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from runner.net.addresses import Address
from runner.net.block_events import BlockChange, EventError, decode_changes, subjects
from runner.net.block_hashes import BlockNames
from runner.net.block_index import MAX_BLOCKS
from runner.net.routing import Router

logger = logging.getLogger(__name__)

_MAX_RANKS = 1024


class _Cache:
    """One worker's."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.names = BlockNames(MAX_BLOCKS)
        self.last_ids: dict[int, int] = {}
        """By data-parallel rank."""

    def take(self, worker_id: int, change: BlockChange) -> None:
        """The next event."""
        last = self.last_ids.get(change.rank)
        if last is None and len(self.last_ids) == _MAX_RANKS:
            return
        if last is None:
            self.router.trust(worker_id, is_trusted=True)
        elif change.event_id != last + 1:
            self.router.trust(worker_id, is_trusted=False)
        self.last_ids[change.rank] = change.event_id
        if change.kind == "stored":
            self.router.stored(worker_id, self.names.stored(change.parent, change.blocks))
        elif change.kind == "removed":
            self.router.removed(worker_id, self.names.removed(change.removed))
        else:
            self.names.clear()
            self.router.forget(worker_id)
            self.router.trust(worker_id, is_trusted=True)


class BlockListener:
    """Hears the workers that it was told of. `start` begins, `close` ends it."""

    def __init__(self, nats: str) -> None:
        self._nats = nats
        self._caches: dict[int, _Cache] = {}
        self._wanted: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.num_changes = 0

    def start(self) -> None:
        """Needs a running loop."""
        self._task = asyncio.create_task(self._listen())

    def add(self, address: Address, worker_id: int, router: Router) -> None:
        """A worker joins; safe twice."""
        if worker_id not in self._caches:
            self._caches[worker_id] = _Cache(router)
        self._wanted.update(subjects(address))
        self._wake.set()

    def remove(self, worker_id: int) -> None:
        """It has left."""
        self._caches.pop(worker_id, None)

    def take(self, data: bytes) -> None:
        """One message; what is none of ours, or no events, is left out."""
        try:
            changes = decode_changes(data)
        except EventError as error:
            logger.debug("%s", error)
            return
        for change in changes:
            cache = self._caches.get(change.worker_id)
            if cache is not None:
                self.num_changes += 1
                cache.take(change.worker_id, change)

    async def _listen(self) -> None:
        from runner.net.nats_connection import connect_when_there

        connection = await connect_when_there(
            self._nats, lambda error: logger.info("no KV events are heard yet: %s", error)
        )
        heard: set[str] = set()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                for subject in self._wanted - heard:
                    await connection.subscribe(subject, cb=self._heard)
                    heard.add(subject)
        finally:
            with contextlib.suppress(Exception):
                await connection.close()

    async def _heard(self, message: Any) -> None:
        self.take(message.data)

    async def close(self) -> None:
        """Safe twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
