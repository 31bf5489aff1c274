"""Discovery in etcd through its JSON gateway (/v3/…): no gRPC.

Leases with keep-alive every third, granted again and written again when etcd lost them. A watch is a snapshot, its
difference to what is known, then events from the snapshot's revision; after any break a new snapshot. So restarts,
compaction and missed deletes are covered, and an outage deletes nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import aiohttp

from runner.net.credentials import ETCD_TLS, EtcdLogin, split_url, tls_trouble
from runner.net.etcd_answers import (
    Authenticated,
    Found,
    Granted,
    Kept,
    Life,
    Watched,
    Written,
    decode_answer,
    refusal,
)
from runner.net.store import LEASE_S, Change, Entry, StoreRefused, StoreUnavailable

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 64 << 20
T = TypeVar("T")
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 2.0


class EtcdStore:
    """See Store. `endpoints` are URLs or host:port; several are tried in turn.

    A user and a password in a URL stand for those of `login` where it has none.
    """

    def __init__(self, endpoints: tuple[str, ...], *, login: EtcdLogin | None = None, lease_s: float = LEASE_S) -> None:
        login = login or EtcdLogin()
        parts = [split_url(endpoint) for endpoint in endpoints]
        scheme = "http" if login.tls is None else "https"
        self._endpoints = [(bare if "://" in bare else f"{scheme}://{bare}").rstrip("/") for bare, _, _ in parts]
        named = next(((user, password) for _, user, password in parts if user), None)
        self._user, self._password = (login.user, login.password) if login.user or named is None else named
        self._tls = login.tls
        self._at = 0
        self._session: aiohttp.ClientSession | None = None
        self._token: str | None = None
        self._leases: set[EtcdLease] = set()
        self.lease_s = lease_s
        self.where = f"etcd at {', '.join(self._endpoints)}"

    async def lease(self) -> EtcdLease:
        """See Store."""
        lease = EtcdLease(self, await self.grant())
        self._leases.add(lease)
        return lease

    async def grant(self) -> int:
        """A lease's id."""
        body = {"TTL": str(max(2, round(self.lease_s)))}
        return int((await self.call("/lease/grant", body, Granted)).ID)

    async def close(self) -> None:
        """See Store."""
        for lease in list(self._leases):
            await lease.revoke()
        if self._session is not None:
            await self._session.close()

    def forget(self, lease: EtcdLease) -> None:
        """A lease that is over."""
        self._leases.discard(lease)

    async def check(self, prefix: str) -> None:
        """See Store."""
        await self.call("/kv/range", {**_interval(prefix), "limit": "1"}, Found)

    async def call(self, path: str, body: dict[str, Any], answer: type[T]) -> T:
        """One call, at the first endpoint that answers what is an `answer`. Raises StoreUnavailable, StoreRefused."""
        why: StoreUnavailable | None = None
        tries = len(self._endpoints)
        while tries > 0:
            tries -= 1
            token = self._token
            try:
                async with self._post(path, body, aiohttp.ClientTimeout(total=_TIMEOUT_S)) as response:
                    data = await _read(response)
                    if response.status == 200:
                        return decode_answer(data, answer)
                    why = self._refused(response.status, data)
                if self._token is None and token is not None:
                    tries += 1  # it was too old: log in again, at the same endpoint
                    continue
            except StoreUnavailable as error:
                why = error
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                why = self._unavailable(error)
            self._at += 1
        assert why is not None
        raise why

    def _refused(self, status: int, data: bytes) -> StoreUnavailable:
        """Of an answer that is an error. Forgets a token that is not taken any more."""
        if status == 401 or b"invalid auth token" in data or b"revision in auth token" in data:
            self._token = None
        why = refusal(data, self._user)
        if why is not None:
            return StoreRefused(f"{self.where} {why}")
        return StoreUnavailable(f"{self.where} does not answer: {status} {data[:500].decode(errors='replace')}")

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        trouble = tls_trouble(error, ETCD_TLS)
        if trouble is not None:
            return StoreRefused(f"{self.where} cannot be used: {trouble}")
        cut = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError)
        if cut or isinstance(getattr(error, "os_error", None), ConnectionResetError):
            error = ConnectionResetError("it ends the connection; http:// is without TLS, https:// with it")
        return StoreUnavailable(f"{self.where} does not answer: {str(error) or repr(error)}")

    @contextlib.asynccontextmanager
    async def _post(
        self, path: str, body: dict[str, Any], timeout: aiohttp.ClientTimeout
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        if self._session is None:
            tls = True if self._tls is None else self._tls
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=tls))
        url = self._endpoints[self._at % len(self._endpoints)] + "/v3"
        if self._user and self._token is None:
            login = {"name": self._user, "password": self._password}
            async with self._session.post(f"{url}/auth/authenticate", json=login, timeout=timeout) as response:
                data = await _read(response)
                if response.status != 200:
                    raise self._refused(response.status, data)
                self._token = decode_answer(data, Authenticated).token
        headers = {"Authorization": self._token} if self._token else {}
        async with self._session.post(url + path, json=body, headers=headers, timeout=timeout) as response:
            yield response

    async def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        """See Store."""
        known: dict[str, bytes] = {}
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                revision, found = await self._range(prefix)
                for key in [key for key in known if key not in found]:
                    del known[key]
                    yield Change(key, None)
                for key, value in found.items():
                    if known.get(key) != value:
                        known[key] = value
                        yield Change(key, value)
                yield Change("", b"")
                pause_s = _FIRST_PAUSE_S
                async with contextlib.aclosing(self._events(prefix, revision + 1)) as events:
                    async for change in events:
                        if change.value is None:
                            known.pop(change.key, None)
                        else:
                            known[change.key] = change.value
                        yield change
            except (StoreUnavailable, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                logger.debug("watch on %s: %r", prefix, error)
            self._at += 1
            await asyncio.sleep(pause_s * (0.5 + random.random()))
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def entries(self, prefix: str) -> list[Entry]:
        """See Store."""
        found = await self.call("/kv/range", _interval(prefix), Found)
        ages = {lease: await self._age(lease) for lease in {kv.lease for kv in found.kvs}}
        try:
            return [Entry(kv.name, kv.data, *ages[kv.lease]) for kv in found.kvs]
        except ValueError as error:
            raise StoreUnavailable(f"{self.where} gives what is no answer: {error!r}") from error

    async def _age(self, lease: str) -> tuple[float | None, float | None]:
        """A lease's length and how long ago it was renewed, in seconds."""
        if lease == "0":
            return None, None
        life = await self.call("/lease/timetolive", {"ID": lease}, Life)
        return float(life.grantedTTL), float(max(0, int(life.grantedTTL) - int(life.TTL)))

    async def _range(self, prefix: str) -> tuple[int, dict[str, bytes]]:
        answer = await self.call("/kv/range", _interval(prefix), Found)
        return int(answer.header.revision), {kv.name: kv.data for kv in answer.kvs if kv.name.startswith(prefix)}

    async def _events(self, prefix: str, revision: int) -> AsyncGenerator[Change, None]:
        """Changes from a revision on; ends or raises when the stream breaks."""
        body = {"create_request": {**_interval(prefix), "start_revision": str(revision), "progress_notify": True}}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_S)
        async with self._post("/watch", body, timeout) as response:
            lines = _Lines()
            async for chunk in response.content.iter_any():  # readline() is limited to 64 KiB
                for line in lines.feed(chunk):
                    result = decode_answer(line, Watched).result
                    if result.canceled:
                        return
                    for event in result.events:
                        if event.kv.name.startswith(prefix):
                            yield Change(event.kv.name, None if event.type == "DELETE" else event.kv.data)


class _Lines:
    """Bytes in as they come, whole lines out."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises ValueError for a line that is too long."""
        self._waiting += chunk
        if b"\n" not in chunk:
            if len(self._waiting) > _MAX_ANSWER_BYTES:
                raise ValueError("a line of the watch is too long")
            return []
        *lines, rest = bytes(self._waiting).split(b"\n")
        self._waiting = bytearray(rest)
        return [line for line in lines if line]


class EtcdLease:
    """See Lease. `id` is the first lease's: it names the instance for its whole life."""

    def __init__(self, store: EtcdStore, lease_id: int) -> None:
        self.id = lease_id
        self._store = store
        self._current = lease_id
        self._values: dict[str, bytes] = {}
        self._is_over = False
        self._task = asyncio.create_task(self._keep_alive())

    async def put(self, key: str, value: bytes) -> None:
        """See Lease."""
        self._values[key] = value
        await self._put(key, value)

    async def _put(self, key: str, value: bytes) -> None:
        data = {"key": _b64(key.encode()), "value": _b64(value), "lease": str(self._current)}
        await self._store.call("/kv/put", data, Written)

    async def _keep_alive(self) -> None:
        pause_s = self._store.lease_s / 3
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._store.lease_s / 3
            try:
                answer = await self._store.call("/lease/keepalive", {"ID": str(self._current)}, Kept)
                if int(answer.result.TTL) <= 0:
                    self._current = await self._store.grant()
                    for key, value in self._values.items():
                        await self._put(key, value)
            except StoreUnavailable as error:
                logger.debug("keep-alive: %s", error)
                pause_s = min(1.0, pause_s)

    async def revoke(self) -> None:
        """See Lease."""
        if self._is_over:
            return
        self._is_over = True
        self._task.cancel()
        await asyncio.wait({self._task})
        with contextlib.suppress(StoreUnavailable):
            await self._store.call("/lease/revoke", {"ID": str(self._current)}, Written)
        self._store.forget(self)


def _interval(prefix: str) -> dict[str, str]:
    first = prefix.encode()
    return {"key": _b64(first), "range_end": _b64(first[:-1] + bytes([first[-1] + 1]))}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole answer. Raises ValueError when it is too long."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > _MAX_ANSWER_BYTES:
            raise ValueError("an answer of etcd is too long")
    return bytes(data)
