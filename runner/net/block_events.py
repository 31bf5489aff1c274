"""KV events on Dynamo's event plane: which blocks a worker's prefix cache has taken in and thrown away.

    NATS subject   namespace.NS.component.COMPONENT.endpoint.ENDPOINT.kv-events   (1.6; 1.0 without the endpoint)
    envelope       msgpack {publisher_id, sequence, published_at (ms), topic, payload}
    payload        msgpack [{worker_id, storage_tier, event: {event_id, dp_rank, data}}]   (1.0: one, no list)
    data           {stored: {parent_hash, blocks: [{block_hash, tokens_hash}]}} | {removed: {block_hashes}} | "cleared"

`event_id` counts a worker's events without a gap. Owns bytes and records only.
"""

from __future__ import annotations

import time
from typing import Any, Literal, NamedTuple

import msgspec

from runner.net.addresses import Address

TOPIC = "kv-events"


class EventError(Exception):
    """Bytes that are no KV events."""


class BlockChange(NamedTuple):
    """One event. `blocks` (stored): hash and tokens hash, each the child of the one before; `removed`: hashes."""

    worker_id: int
    event_id: int
    kind: Literal["stored", "removed", "cleared"]
    parent: int | None = None
    blocks: list[tuple[int, int]] = []
    removed: list[int] = []
    rank: int = 0


class _Block(msgspec.Struct):
    block_hash: int
    tokens_hash: int
    mm_extra_info: Any = None


class _Stored(msgspec.Struct):
    blocks: list[_Block]
    parent_hash: int | None = None
    start_position: int | None = None


class _Removed(msgspec.Struct):
    block_hashes: list[int]


class _Data(msgspec.Struct, omit_defaults=True):
    stored: _Stored | None = None
    removed: _Removed | None = None


class _Event(msgspec.Struct):
    event_id: int
    data: _Data | str
    dp_rank: int = 0


class _RouterEvent(msgspec.Struct):
    worker_id: int
    event: _Event
    storage_tier: str = "device"
    residency_domain: str = "worker"


class _Envelope(msgspec.Struct):
    publisher_id: int
    sequence: int
    payload: bytes
    topic: str = TOPIC
    published_at: int = 0


_encode = msgspec.msgpack.Encoder().encode
_envelopes = msgspec.msgpack.Decoder(_Envelope)
_payloads = msgspec.msgpack.Decoder(list[_RouterEvent] | _RouterEvent)


def subjects(address: Address) -> tuple[str, str]:
    """Where the workers of an address are heard: of 1.6 (and of llmrun), and of 1.0."""
    component = f"namespace.{address.namespace}.component.{address.component}"
    return f"{component}.endpoint.{address.endpoint}.{TOPIC}", f"{component}.{TOPIC}"


def source_records(address: Address, worker_id: int, publisher_id: int) -> dict[str, bytes]:
    """What stands in the discovery while a worker publishes: without it, routers of 1.6 do not believe what they hear.

    No `recovery_target`: we answer no questions about what was said before.
    """
    endpoint = {"namespace": address.namespace, "component": address.component, "name": address.endpoint}
    common = {"scope": {"kind": "endpoint", "endpoint": endpoint}, "topic": TOPIC}
    nats = {"kind": "Nats", "config": {"subject_prefix": subjects(address)[0].removesuffix(f".{TOPIC}")}}
    source = {
        "kv_state_endpoint": endpoint,
        "worker": {"worker_id": worker_id, "dp_rank": 0},
        "publisher_id": publisher_id,
        "recovery_target": None,
    }
    tail = (
        f"namespace/{address.namespace}/component/{address.component}/endpoint/{address.endpoint}"
        f"/topic/{TOPIC}/{publisher_id:x}"
    )
    records: dict[str, dict[str, Any]] = {
        f"v1/event_channels/{tail}": {"type": "EventChannel", "instance_id": publisher_id, "transport": nats},
        f"v1/event_sources/{tail}": {"type": "EventSource", "publisher_id": publisher_id, "metadata": source},
    }
    return {key: msgspec.json.encode({**record, **common}) for key, record in records.items()}


def encode_changes(publisher_id: int, sequence: int, changes: list[BlockChange]) -> bytes:
    """One message."""
    payload = _encode([_RouterEvent(one.worker_id, _Event(one.event_id, _data(one), one.rank)) for one in changes])
    return _encode(_Envelope(publisher_id, sequence, payload, published_at=int(time.time() * 1000)))


def _data(change: BlockChange) -> _Data | str:
    if change.kind == "stored":
        return _Data(stored=_Stored([_Block(*block) for block in change.blocks], change.parent))
    return _Data(removed=_Removed(change.removed)) if change.kind == "removed" else "cleared"


def decode_changes(data: bytes) -> list[BlockChange]:
    """Those of the device's own memory. Raises EventError."""
    try:
        told = _payloads.decode(_envelopes.decode(data).payload)
    except (ValueError, RecursionError) as error:
        raise EventError(f"not a KV event: {error}") from None
    several = told if isinstance(told, list) else [told]
    return [_change(one) for one in several if one.storage_tier == "device"]


def _change(told: _RouterEvent) -> BlockChange:
    event, data = told.event, told.event.data
    plain = BlockChange(told.worker_id, event.event_id, "cleared", rank=event.dp_rank)
    if isinstance(data, str):
        if data != "cleared":
            raise EventError(f"the KV event {data[:40]!r} is not known here")
        return _checked(plain)
    if data.stored is not None:
        blocks = [(block.block_hash, block.tokens_hash) for block in data.stored.blocks]
        return _checked(plain._replace(kind="stored", parent=data.stored.parent_hash, blocks=blocks))
    if data.removed is not None:
        return _checked(plain._replace(kind="removed", removed=data.removed.block_hashes))
    raise EventError("a KV event without data")


def _checked(change: BlockChange) -> BlockChange:
    numbers = [number for block in change.blocks for number in block]
    if min(*numbers, *change.removed, change.worker_id, change.event_id, change.parent or 0, 0) < 0:
        raise EventError("a number below 0")
    return change
