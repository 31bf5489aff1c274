"""What a worker's engine says of its prefix cache, on its way to the event plane, for routers (--router-mode kv).

Knows both languages, the engine's (block_log.py) and the network's (block_publisher.py); owns neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from functools import partial

from runner.engines.base import Engine
from runner.engines.block_log import BlockEvent
from runner.engines.process import ProcessEngine
from runner.net.addresses import Address
from runner.net.block_publisher import BlockPublisher
from runner.net.settings import NetSettings
from runner.net.store import Lease


@contextlib.asynccontextmanager
async def blocks_told(
    engine: Engine | None, settings: NetSettings, address: Address, lease: Lease
) -> AsyncGenerator[None, None]:
    """Publish while this is open; nothing where KV events are off or the engine is none of ours, or several.

    Raises StoreUnavailable.
    """
    if not settings.kv_events or not isinstance(engine, ProcessEngine):
        yield
        return
    publisher = BlockPublisher(settings.nats, address, lease.id)
    publisher.start()
    try:
        for key, value in publisher.records.items():
            await lease.put(key, value)
        engine.watch_blocks(partial(_tell, publisher))
        yield
    finally:
        await publisher.close()


def _tell(publisher: BlockPublisher, events: list[BlockEvent]) -> None:
    for event in events:
        if event.kind == "stored":
            publisher.stored(event.keys, event.parent, event.token_ids)
        elif event.kind == "removed":
            publisher.removed(event.keys)
        else:
            publisher.cleared()
