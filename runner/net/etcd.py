"""Discovery in etcd through its JSON gateway (/v3/…): no gRPC.

Leases with keep-alive every third, granted again and written again when etcd lost them. A watch is a snapshot, its
difference to what is known, then events from the snapshot's revision; after any break a new snapshot. So restarts,
compaction and missed deletes are covered, and an outage deletes nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import random
import ssl
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp

from runner.net.store import LEASE_S, Change, Entry, StoreUnavailable

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_MAX_LINE_BYTES = 64 << 20
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 2.0


class EtcdStore:
    """See Store. `endpoints` are URLs or host:port; several are tried in turn."""

    def __init__(self, endpoints: tuple[str, ...], *, lease_s: float = LEASE_S) -> None:
        secure = "https" if os.environ.get("ETCD_AUTH_CA") else "http"
        self._endpoints = [(e if "://" in e else f"{secure}://{e}").rstrip("/") for e in endpoints]
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
        return int((await self.call("/lease/grant", {"TTL": str(max(2, round(self.lease_s)))}))["ID"])

    async def close(self) -> None:
        """See Store."""
        for lease in list(self._leases):
            await lease.revoke()
        if self._session is not None:
            await self._session.close()

    def forget(self, lease: EtcdLease) -> None:
        """A lease that is over."""
        self._leases.discard(lease)

    async def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call, at the first endpoint that answers. Raises StoreUnavailable."""
        why: object = None
        for _ in self._endpoints:
            try:
                async with self._post(path, body, aiohttp.ClientTimeout(total=_TIMEOUT_S)) as response:
                    answer = await response.json(content_type=None)
                    if response.status == 200 and isinstance(answer, dict) and "error" not in answer:
                        return answer
                    why = f"{response.status} {answer}"
                    if response.status == 401 or "auth" in str(answer):
                        self._token = None
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                why = repr(error)
            self._at += 1
        raise StoreUnavailable(f"{self.where} does not answer: {why}")

    @contextlib.asynccontextmanager
    async def _post(
        self, path: str, body: dict[str, Any], timeout: aiohttp.ClientTimeout
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=_tls()))
        url = self._endpoints[self._at % len(self._endpoints)] + "/v3"
        user = os.environ.get("ETCD_AUTH_USERNAME")
        if user and self._token is None:
            login = {"name": user, "password": os.environ.get("ETCD_AUTH_PASSWORD", "")}
            async with self._session.post(f"{url}/auth/authenticate", json=login, timeout=timeout) as response:
                self._token = (await response.json(content_type=None)).get("token")
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
            except (StoreUnavailable, aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                logger.debug("watch on %s: %r", prefix, error)
            self._at += 1
            await asyncio.sleep(pause_s * (0.5 + random.random()))
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def entries(self, prefix: str) -> list[Entry]:
        """See Store."""
        try:
            found = (await self.call("/kv/range", _interval(prefix))).get("kvs", [])
            ages = {lease: await self._age(lease) for lease in {kv.get("lease", "0") for kv in found}}
            return [
                Entry(_text(kv["key"]), base64.b64decode(kv.get("value", "")), *ages[kv.get("lease", "0")])
                for kv in found
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreUnavailable(f"{self.where} gives what is no answer: {error!r}") from error

    async def _age(self, lease: str) -> tuple[float | None, float | None]:
        """A lease's length and how long ago it was renewed, in seconds."""
        if lease == "0":
            return None, None
        answer = await self.call("/lease/timetolive", {"ID": lease})
        granted, left = int(answer.get("grantedTTL", 0)), int(answer.get("TTL", 0))
        return float(granted), float(max(0, granted - left))

    async def _range(self, prefix: str) -> tuple[int, dict[str, bytes]]:
        answer = await self.call("/kv/range", _interval(prefix))
        found = {_text(kv["key"]): base64.b64decode(kv.get("value", "")) for kv in answer.get("kvs", [])}
        return int(answer["header"]["revision"]), found

    async def _events(self, prefix: str, revision: int) -> AsyncGenerator[Change, None]:
        """Changes from a revision on; ends or raises when the stream breaks."""
        body = {"create_request": {**_interval(prefix), "start_revision": str(revision), "progress_notify": True}}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_S)
        async with self._post("/watch", body, timeout) as response:
            waiting = b""
            async for chunk in response.content.iter_any():  # readline() is limited to 64 KiB
                *lines, waiting = (waiting + chunk).split(b"\n")
                if len(waiting) > _MAX_LINE_BYTES:
                    raise ValueError("a line of the watch is too long")
                for line in filter(None, lines):
                    result = json.loads(line)["result"]
                    if result.get("canceled"):
                        return
                    for event in result.get("events", []):
                        is_gone = event.get("type") == "DELETE"
                        value = None if is_gone else base64.b64decode(event["kv"].get("value", ""))
                        yield Change(_text(event["kv"]["key"]), value)


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
        await self._store.call("/kv/put", data)

    async def _keep_alive(self) -> None:
        pause_s = self._store.lease_s / 3
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._store.lease_s / 3
            try:
                answer = await self._store.call("/lease/keepalive", {"ID": str(self._current)})
                if int(answer.get("result", {}).get("TTL", 0)) <= 0:
                    self._current = await self._store.grant()
                    for key, value in self._values.items():
                        await self._put(key, value)
            except StoreUnavailable as error:
                logger.debug("keep-alive: %s", error)
                pause_s = min(1.0, pause_s)
            except (ValueError, KeyError) as error:
                logger.warning("keep-alive: %r", error)

    async def revoke(self) -> None:
        """See Lease."""
        if self._is_over:
            return
        self._is_over = True
        self._task.cancel()
        await asyncio.wait({self._task})
        with contextlib.suppress(StoreUnavailable):
            await self._store.call("/lease/revoke", {"ID": str(self._current)})
        self._store.forget(self)


def _tls() -> ssl.SSLContext | bool:
    """ETCD_AUTH_CA, ETCD_AUTH_CLIENT_CERT, ETCD_AUTH_CLIENT_KEY, as Dynamo names them."""
    authority, cert = os.environ.get("ETCD_AUTH_CA"), os.environ.get("ETCD_AUTH_CLIENT_CERT")
    if not authority and not cert:
        return True
    context = ssl.create_default_context(cafile=authority)
    if cert:
        context.load_cert_chain(cert, os.environ.get("ETCD_AUTH_CLIENT_KEY"))
    return context


def _interval(prefix: str) -> dict[str, str]:
    first = prefix.encode()
    return {"key": _b64(first), "range_end": _b64(first[:-1] + bytes([first[-1] + 1]))}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(data: str) -> str:
    return base64.b64decode(data).decode(errors="replace")
