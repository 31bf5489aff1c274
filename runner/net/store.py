"""Discovery, as one small interface: keys that live as long as their lease, and a watch on a prefix.

Two stores implement it: etcd.py and folder.py. What the keys mean is in records.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

LEASE_S = 10.0
"""Dynamo's. A worker that dies without a word is gone after this, or a little later."""


class StoreUnavailable(Exception):
    """The store cannot be reached now; what is known stays valid."""


class StoreRefused(StoreUnavailable):
    """The store is there and does not let us in, or we do not trust it; it says what to set."""


class Change(NamedTuple):
    """`value` None: the key is gone. An empty `key`: all keys of the snapshot have been told."""

    key: str
    value: bytes | None


class Entry(NamedTuple):
    """A key as it stands now. It is gone `lease_s` after it was last renewed; both None: it has no lease."""

    key: str
    value: bytes
    lease_s: float | None
    renewed_s_ago: float | None


class Lease(Protocol):
    """Keys under one lease; kept alive, granted again and written again whenever the store lost it."""

    id: int

    async def put(self, key: str, value: bytes) -> None:
        """Write a key. Raises StoreUnavailable."""

    async def revoke(self) -> None:
        """Remove all keys, at once for everybody; never raises, safe twice."""


class Store(Protocol):
    """A place where workers are found."""

    where: str
    """For messages: what was looked at."""

    async def check(self, prefix: str) -> None:
        """Whether keys can be read. Raises StoreUnavailable, and StoreRefused where waiting does not help."""

    async def lease(self) -> Lease:
        """A new lease. Raises StoreUnavailable."""

    def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        """A snapshot, then every change; survives all outages (known keys stay) and never ends."""

    async def entries(self, prefix: str) -> list[Entry]:
        """What is there now. Raises StoreUnavailable."""

    async def close(self) -> None:
        """Safe twice."""
