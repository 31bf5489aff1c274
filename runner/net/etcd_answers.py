"""What etcd's JSON gateway answers, as records: 64-bit numbers come as text, keys and values as base64.

Fields that a default of protobuf leaves out have that default here; whatever else is missing or of another kind makes
the answer unusable. Nothing of an answer is used that is not in these records.
"""

from __future__ import annotations

import base64
from typing import Annotated, TypeVar

import msgspec

Number = Annotated[str, msgspec.Meta(pattern="^-?[0-9]{1,19}$")]
T = TypeVar("T")


class Header(msgspec.Struct, frozen=True):
    """Of every answer."""

    revision: Number = "0"


class Written(msgspec.Struct, frozen=True):
    """/kv/put, /lease/revoke."""

    header: Header


class Granted(msgspec.Struct, frozen=True):
    """/lease/grant."""

    ID: Number


class Remaining(msgspec.Struct, frozen=True):
    """TTL 0: the lease is gone."""

    TTL: Number = "0"


class Kept(msgspec.Struct, frozen=True):
    """/lease/keepalive."""

    result: Remaining


class Life(msgspec.Struct, frozen=True):
    """/lease/timetolive. TTL -1: the lease is gone."""

    TTL: Number = "0"
    grantedTTL: Number = "0"


class Authenticated(msgspec.Struct, frozen=True):
    """/auth/authenticate."""

    token: str


class KeyValue(msgspec.Struct, frozen=True):
    """One key."""

    key: str
    value: str = ""
    lease: Number = "0"

    @property
    def name(self) -> str:
        """Raises ValueError."""
        return base64.b64decode(self.key, validate=True).decode(errors="replace")

    @property
    def data(self) -> bytes:
        """Raises ValueError."""
        return base64.b64decode(self.value, validate=True)


class Found(msgspec.Struct, frozen=True):
    """/kv/range."""

    header: Header
    kvs: list[KeyValue] = []


class Event(msgspec.Struct, frozen=True):
    """PUT or DELETE."""

    kv: KeyValue
    type: str = "PUT"


class Events(msgspec.Struct, frozen=True):
    """One message of a watch."""

    canceled: bool = False
    events: list[Event] = []


class Watched(msgspec.Struct, frozen=True):
    """One line of /watch."""

    result: Events


def decode_answer(data: bytes, kind: type[T]) -> T:
    """Raises ValueError for what is no such answer."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("an answer is nested too deeply") from None


_REFUSALS = (
    (b"authentication failed", "refuses the user {user!r} with its password (ETCD_AUTH_USERNAME, ETCD_AUTH_PASSWORD)"),
    (b"user name is empty", "wants a user: ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD name one"),
    (b"permission denied", "does not let the user {user!r} use the keys of dyn:// (v1/ and instances/): grant a role"),
    (b"authentication is not enabled", "knows no users: leave ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD out"),
    (b"HTTP request to an HTTPS server", "speaks TLS, and the URL says http://; write https://"),
)


def refusal(data: bytes, user: str | None) -> str | None:
    """What an error of etcd means that waiting does not mend, with the next step; None for others."""
    return next((text.format(user=user) for mark, text in _REFUSALS if mark in data), None)
