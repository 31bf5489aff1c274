"""Who is there: the workers that discovery sees now, for `llmrun workers`. One look, no watch."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from runner.net.loads import LOADS, Load, load_key
from runner.net.records import CARDS, INSTANCES, Instance, RecordError, decode_card, decode_instance
from runner.net.store import Entry, Store

_OLD_INSTANCES = "instances/"
"""Where Dynamo 0.3 and 0.4 register."""


class WorkerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One instance. `model` None: it has no card (yet); `load` None: it publishes none.

    Times in seconds, None where there is no lease.
    """

    model: str | None
    endpoint: str
    instance: str
    plane: str
    target: str
    codec: str
    context_length: int | None
    load: Load | None
    lease_s: float | None
    renewed_s_ago: float | None


class Unreadable(msgspec.Struct, frozen=True, kw_only=True):
    """A record that nobody can use, and why."""

    key: str
    why: str


async def list_workers(store: Store) -> tuple[list[WorkerEntry], list[Unreadable]]:
    """All instances of both layouts, each once, by endpoint. Raises StoreUnavailable."""
    cards = await _cards(store)
    loads = {entry.key: entry.value for entry in await store.entries(LOADS)}
    found: dict[str, WorkerEntry] = {}
    unreadable: list[Unreadable] = []
    for entry in [*await store.entries(INSTANCES), *await store.entries(_OLD_INSTANCES)]:
        try:
            instance = decode_instance(entry.key, entry.value)
        except RecordError as error:
            unreadable.append(Unreadable(key=entry.key, why=str(error)))
            continue
        card = cards.get((instance.address.path, instance.id), {})
        load = _load(loads.get(load_key(instance.address, instance.id)))
        found.setdefault(f"{instance.address.path}/{instance.name}", _worker(instance, card, entry, load))
    return [worker for _, worker in sorted(found.items())], unreadable


async def _cards(store: Store) -> dict[tuple[str, int], dict[str, Any]]:
    cards: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in await store.entries(CARDS):
        with contextlib.suppress(RecordError):  # the instance is listed without its model
            address, instance_id, card = decode_card(entry.key, entry.value)
            cards[address.path, instance_id] = card
    return cards


def _load(value: bytes | None) -> Load | None:
    """None where a worker publishes none (Dynamo's do not)."""
    try:
        return None if value is None else msgspec.json.decode(value, type=Load)
    except (ValueError, RecursionError):
        return None


def _worker(instance: Instance, card: dict[str, Any], entry: Entry, load: Load | None) -> WorkerEntry:
    name, context = card.get("display_name"), card.get("context_length")
    return WorkerEntry(
        model=name if isinstance(name, str) else None,
        endpoint=str(instance.address),
        instance=instance.name,
        plane=instance.plane.removesuffix("_tcp"),
        target=instance.target,
        codec=instance.codec,
        context_length=context if isinstance(context, int) else None,
        load=load,
        lease_s=entry.lease_s,
        renewed_s_ago=entry.renewed_s_ago,
    )
