"""A worker's end of the event plane: what happens to its engine's prefix cache goes to whoever routes by it.

Owns the order and the numbers of events, and a connection to NATS that may come and go: what cannot be sent is dropped,
and the gap in the numbers says so. Knows no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from typing import Any

from runner.net.addresses import Address
from runner.net.block_events import BlockChange, encode_changes, source_records, subjects
from runner.net.block_hashes import BlockNames, tokens_hashes

logger = logging.getLogger(__name__)

_MAX_NAMES = 1 << 22
_MAX_WAITING = 10_000
"""Events, while NATS is away."""
_MAX_TOGETHER = 64
"""Events of one message: NATS takes a megabyte, and a prompt of 100,000 tokens makes an event of 150 kB."""


class BlockPublisher:
    """Events of one worker. `start` begins to publish, `close` ends it. The other methods may be called at any time."""

    def __init__(self, nats: str, address: Address, worker_id: int) -> None:
        self._nats, self._address, self._subject = nats, address, subjects(address)[0]
        self._worker_id, self._publisher_id = worker_id, secrets.randbits(53)  # as exact as JSON numbers are
        self._names = BlockNames(_MAX_NAMES)
        self._last_id = 0
        self._num_sent = 0
        self._waiting: list[BlockChange] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def records(self) -> dict[str, bytes]:
        """For the discovery, under the worker's lease."""
        return source_records(self._address, self._worker_id, self._publisher_id)

    def start(self) -> None:
        """Needs a running loop."""
        self._task = asyncio.create_task(self._publish())

    def stored(self, names: Sequence[bytes], parent: bytes, token_ids: Sequence[int]) -> None:
        """Blocks came in: each continues the one before, the first `parent` (empty: none). token_ids are theirs."""
        hashes = tokens_hashes(token_ids, len(token_ids) // len(names))
        above = self._names.find(parent) if parent else None
        blocks = self._names.stored(parent or None, zip(names, hashes, strict=True))
        if blocks:
            self._add("stored", parent=above, blocks=list(zip(blocks, hashes, strict=True)))

    def removed(self, names: Sequence[bytes]) -> None:
        """Blocks are gone."""
        hashes = self._names.removed(names)
        if hashes:
            self._add("removed", removed=hashes)

    def cleared(self) -> None:
        """The cache is empty: the engine is new."""
        self._names.clear()
        self._add("cleared")

    def _add(self, kind: Any, **what: Any) -> None:
        self._last_id += 1
        if len(self._waiting) >= _MAX_WAITING:
            self._waiting.clear()
        self._waiting.append(BlockChange(self._worker_id, self._last_id, kind, **what))
        self._wake.set()

    async def _publish(self) -> None:
        from runner.net.nats_connection import connect_when_there

        connection = await connect_when_there(
            self._nats, lambda error: logger.info("no KV events are sent yet: %s", error)
        )
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    some, self._waiting = self._waiting[:_MAX_TOGETHER], self._waiting[_MAX_TOGETHER:]
                    await self._send(connection, some)
        finally:
            with contextlib.suppress(Exception):
                await connection.close()

    async def _send(self, connection: Any, changes: list[BlockChange]) -> None:
        from nats import errors

        data = encode_changes(self._publisher_id, self._num_sent, changes)
        self._num_sent += 1
        try:
            await connection.publish(self._subject, data)
        except (errors.Error, OSError) as error:
            logger.info("%d KV events are lost: %r", len(changes), error)

    async def close(self) -> None:
        """Safe twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
