"""What stands in the discovery: instances and model cards, in Dynamo's layouts v1 (0.9 and later) and v0 (0.3, 0.4)."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from runner.net.addresses import Address, parse_host_port

Codec = Literal["json", "msgpack"]
Plane = Literal["tcp", "nats_tcp"]
INSTANCES, CARDS = "v1/instances/", "v1/mdc/"
_MAX_TARGET = 1024
_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,200}")
_SUBJECT = re.compile(r"[^\s*>\x00-\x1f\x7f]+")
"""Of NATS; no wildcards."""
_UPDATE = "It may be newer: update llmrun here"


class RecordError(Exception):
    """A record that cannot be used; it says which and why."""


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One worker at one address."""

    address: Address
    id: int
    plane: Plane
    target: str
    """tcp: host:port/path; nats_tcp: the subject."""
    codec: Codec = "json"

    @property
    def name(self) -> str:
        """For messages and metrics."""
        return f"{self.id:x}"


def instance_keys(address: Address, instance_id: int) -> tuple[str, str]:
    """v1 and v0."""
    tail = f"{instance_id:x}"
    return f"{INSTANCES}{address.path}/{tail}", f"instances/{address.path}:{tail}"


def card_key(address: Address, instance_id: int) -> str:
    """Where an instance's card is."""
    return f"{CARDS}{address.path}/{instance_id:x}"


def encode_instance(instance: Instance) -> tuple[bytes, bytes]:
    """Values for the keys of v1 and v0."""
    record: dict[str, Any] = {
        "component": instance.address.component,
        "endpoint": instance.address.endpoint,
        "namespace": instance.address.namespace,
        "instance_id": instance.id,
        "transport": {instance.plane: instance.target},
    }
    old = msgspec.json.encode(record)
    return msgspec.json.encode({"type": "Endpoint", **record, "request_plane_codec": instance.codec}), old


def decode_instance(key: str, value: bytes) -> Instance:
    """Raises RecordError."""
    record = _record(key, value)
    transport = record.get("transport")
    codec = record.get("request_plane_codec", "json")
    if codec not in ("json", "msgpack"):
        raise RecordError(
            f"{key}: the worker wants the codec {_short(codec)}; json and msgpack are known here. {_UPDATE}"
        )
    if not isinstance(transport, dict) or len(transport) != 1:
        raise RecordError(f"{key}: its transport is {_short(transport)}; one address is wanted. {_UPDATE}")
    plane, target = next(iter(transport.items()))
    if plane not in ("tcp", "nats_tcp"):
        raise RecordError(
            f"{key}: the worker takes requests over {_short(plane)}; tcp and nats_tcp are known here. "
            "Start it with --request-plane tcp (Dynamo: DYN_REQUEST_PLANE=tcp)"
        )
    _check_target(key, plane, target)
    address, instance_id = _whose(key, record)
    return Instance(address=address, id=instance_id, plane=plane, target=target, codec=codec)


def _short(value: Any) -> str:
    return f"{value!r:.60}"


def _check_target(key: str, plane: str, target: Any) -> None:
    """An address that can be asked. Raises RecordError."""
    if not isinstance(target, str) or not 0 < len(target) <= _MAX_TARGET:
        raise RecordError(f"{key}: its address is no text of at most {_MAX_TARGET} characters")
    try:
        if plane == "tcp":
            parse_host_port(target.removeprefix("tcp://").partition("/")[0])
        elif not _SUBJECT.fullmatch(target):
            raise ValueError(f"{target[:100]!r} is no subject")
    except ValueError as error:
        raise RecordError(f"{key}: {error}") from None


def encode_card(address: Address, instance_id: int, card: dict[str, Any]) -> bytes:
    """The record around a card."""
    return msgspec.json.encode(
        {
            "type": "Model",
            "namespace": address.namespace,
            "component": address.component,
            "endpoint": address.endpoint,
            "instance_id": instance_id,
            "card_json": card,
        }
    )


def decode_card(key: str, value: bytes) -> tuple[Address, int, dict[str, Any]]:
    """Raises RecordError."""
    record = _record(key, value)
    card = record.get("card_json")
    if not isinstance(card, dict):
        raise RecordError(f"{key}: no card_json")
    return *_whose(key, record), card


def _record(key: str, value: bytes) -> dict[str, Any]:
    try:
        record = msgspec.json.decode(value)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{key}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise RecordError(f"{key}: not a JSON object")
    return record


def _whose(key: str, record: dict[str, Any]) -> tuple[Address, int]:
    parts = [record.get(name) for name in ("namespace", "component", "endpoint")]
    instance_id = record.get("instance_id")
    if not all(isinstance(part, str) and _NAME.fullmatch(part) for part in parts):
        raise RecordError(f"{key}: namespace, component or endpoint is missing, or no name")
    if type(instance_id) is not int or not 0 <= instance_id < 1 << 64:
        raise RecordError(f"{key}: instance_id is missing, or no number of 64 bits")
    return Address(*(str(part) for part in parts)), instance_id
