"""The request planes: how a request's frame reaches an instance, and how its taking is acknowledged.

TCP: `u16be path length | path | u16be header length | header JSON | u32be length | frame`, answered by
`u32be length | error text` (empty: taken). NATS: a request to the instance's subject with an empty answer.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from runner.errors import EngineStartFailed, UsageError
from runner.net.addresses import parse_host_port
from runner.net.credentials import bare_url
from runner.net.frames import MAX_FRAME_BYTES
from runner.net.records import Instance

ACK_S = 5.0
_REQUEST_S = 30.0
"""How long one request may take to arrive once it has begun."""
PROBE_S = 3.0
_CLOSE_S = 1.0
PING = "x-llmrun-ping"
"""A header that asks for no more than an acknowledgement: is this instance well?"""
OWN = "x-llmrun"
"""A header that says: the other side is llmrun, and reads the text of a refusal."""
_PING_PATH = "llmrun.ping"
Taken = Callable[[bytes, dict[str, str]], str | None]
"""Takes a frame and the transport's headers; returns why it is refused, or None. Must not block."""


class Unreachable(Exception):
    """The instance did not acknowledge: gone, cut off or frozen."""


class Refused(Exception):
    """The instance answered, and does not take the request."""


class TooLarge(Exception):
    """The request is larger than this plane carries."""


class RequestPlane(Protocol):
    """The ingress' side."""

    async def send(self, instance: Instance, frame: bytes, headers: dict[str, str]) -> None:
        """Returns when acknowledged. Raises Unreachable, Refused or TooLarge."""

    async def probe(self, instance: Instance) -> str:
        """Ask whether it is there; what is wrong with it, or nothing. Raises Unreachable."""

    async def close(self) -> None:
        """Safe twice."""


class TcpRequests:
    """One connection an address; acknowledgements come in the order of the requests."""

    def __init__(self) -> None:
        self._connections: dict[str, _TcpConnection] = {}

    async def send(self, instance: Instance, frame: bytes, headers: dict[str, str]) -> None:
        """See RequestPlane."""
        where, _, path = instance.target.removeprefix("tcp://").partition("/")
        answer = await self._ask(where, path, headers, frame, ACK_S)
        if answer:
            raise Refused(answer.decode(errors="replace")[:1000])

    async def probe(self, instance: Instance) -> str:
        """See RequestPlane. Any answer of another program than llmrun is a good one."""
        where = instance.target.removeprefix("tcp://").partition("/")[0]
        answer = (await self._ask(where, _PING_PATH, {}, b"", PROBE_S)).decode(errors="replace")[:1000]
        return "" if _PING_PATH in answer else answer

    async def _ask(self, where: str, path: str, headers: dict[str, str], frame: bytes, timeout_s: float) -> bytes:
        connection = self._connections.get(where)
        if connection is None or connection.is_broken:
            connection = self._connections[where] = _TcpConnection(where)
        try:
            async with asyncio.timeout(timeout_s):
                return await connection.ask(path, {**headers, "x-endpoint-path": path}, frame)
        except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
            connection.close()
            why = f"no answer within {timeout_s:.0f} s" if isinstance(error, TimeoutError) else str(error)
            raise Unreachable(f"{where}: {why or repr(error)}") from error

    async def close(self) -> None:
        """See RequestPlane."""
        for connection in self._connections.values():
            connection.close()


class _TcpConnection:
    def __init__(self, where: str) -> None:
        self._where = where
        self._opening: asyncio.Task[tuple[asyncio.StreamReader, asyncio.StreamWriter]] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._acks: list[asyncio.Future[bytes]] = []
        self.is_broken = False

    async def ask(self, path: str, headers: dict[str, str], frame: bytes) -> bytes:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        if not self._opening.done():  # else on without a turn of the loop: other requests would all go first
            await asyncio.wait({self._opening})
        if self.is_broken or self._opening.cancelled():  # another request gave the connection up
            raise ConnectionError("the connection ended")
        _, writer = self._opening.result()
        head, where = msgspec.json.encode(headers), path.encode()
        if max(len(head), len(where)) >= 1 << 16 or len(frame) > MAX_FRAME_BYTES:
            raise TooLarge(f"a request of {len(frame):,} bytes with {len(head):,} bytes of headers is too large")
        ack: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._acks.append(ack)
        lengths = struct.pack(">H", len(where)), struct.pack(">H", len(head)), struct.pack(">I", len(frame))
        writer.write(b"".join((lengths[0], where, lengths[1], head, lengths[2], frame)))
        await writer.drain()
        return await ack

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*parse_host_port(self._where))
        self._reading = asyncio.create_task(self._read(reader))
        return reader, writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                (length,) = struct.unpack(">I", await reader.readexactly(4))
                if length > 1 << 20:
                    raise ConnectionError(f"an acknowledgement of {length} bytes")
                text = await reader.readexactly(length)
                if not self._acks:
                    raise ConnectionError("an acknowledgement that nobody waits for")
                if not (ack := self._acks.pop(0)).done():
                    ack.set_result(text)
        except (OSError, EOFError):
            self.close()

    def close(self) -> None:
        self.is_broken = True
        for ack in self._acks:
            if not ack.done():
                ack.set_exception(ConnectionError("the connection ended"))
        self._acks.clear()
        opening = self._opening
        if opening is not None:
            if not opening.done():
                opening.cancel()
            elif not opening.cancelled() and opening.exception() is None:
                opening.result()[1].close()
        if self._reading is not None and self._reading is not asyncio.current_task():
            self._reading.cancel()


class NatsRequests:
    """Requests over one NATS connection, made on first use."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Any = None
        self._lock = asyncio.Lock()
        self._where = f"NATS {bare_url(url)}"

    async def send(self, instance: Instance, frame: bytes, headers: dict[str, str]) -> None:
        """See RequestPlane."""
        answer = await self._ask(instance, frame, headers, ACK_S)
        if answer:
            raise Refused(answer.decode(errors="replace")[:1000])

    async def probe(self, instance: Instance) -> str:
        """See RequestPlane. Only for llmrun's own workers: others would take it for a request."""
        return (await self._ask(instance, b"", {PING: "1"}, PROBE_S)).decode(errors="replace")[:1000]

    async def _ask(self, instance: Instance, frame: bytes, headers: dict[str, str], timeout_s: float) -> bytes:
        from nats import errors

        from runner.net.nats_connection import connect_nats

        try:
            async with self._lock:
                if self._connection is None:
                    self._connection = await connect_nats(self._url)
            answer = await self._connection.request(instance.target, frame, timeout=timeout_s, headers=headers)
        except errors.MaxPayloadError:
            limit = self._connection.max_payload
            raise TooLarge(
                f"the request has {len(frame):,} bytes, {self._where} takes {limit:,} (max_payload); "
                "let the worker use --request-plane tcp"
            ) from None
        except (errors.Error, OSError, EngineStartFailed, UsageError) as error:
            raise Unreachable(f"{instance.target} at {self._where}: {error or repr(error)}") from error
        data: bytes = answer.data
        return data

    async def close(self) -> None:
        """See RequestPlane."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


class TcpEndpoint:
    """The worker's side of the TCP plane."""

    def __init__(self, host: str, take: Taken, *, port: int = 0) -> None:
        self._host, self._port, self._take = host, port, take
        self._path = ""
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, path: str) -> str:
        """Listen; returns the target for the instance's record. Raises OSError."""
        self._path = path
        self._server = await asyncio.start_server(self._serve, self._host, self._port)
        name = self._server.sockets[0].getsockname()
        where = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"{where}:{name[1]}/{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        try:
            while True:
                start = await reader.readexactly(2)  # however long nobody asks
                async with asyncio.timeout(_REQUEST_S):
                    refusal = (await self._read_one(reader, start)).encode()
                    writer.write(struct.pack(">I", len(refusal)) + refusal)
                    await writer.drain()
        except (OSError, EOFError):  # TimeoutError is an OSError
            pass
        finally:
            del self._serving[task]
            writer.close()

    async def _read_one(self, reader: asyncio.StreamReader, start: bytes) -> str:
        """Take one request; returns why not. Raises EOFError or ConnectionError when the connection is of no use."""
        (length,) = struct.unpack(">H", start)
        path = (await reader.readexactly(length)).decode(errors="replace")
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        head = await reader.readexactly(length)
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        if length > MAX_FRAME_BYTES:
            raise ConnectionError("too large")
        frame = await reader.readexactly(length)
        if path == _PING_PATH:
            return self._take(b"", {PING: "1"}) or ""
        if path != self._path:
            return f"Unknown endpoint {path[:200]}"
        try:
            headers = msgspec.json.decode(head, type=dict[str, str])
        except (ValueError, RecursionError) as error:
            return f"the headers cannot be read: {error}"
        return self._take(frame, headers) or ""

    async def close(self) -> None:
        """Safe twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = set(self._serving)
        for writer in self._serving.values():
            writer.close()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)


class NatsEndpoint:
    """The worker's side of the NATS plane."""

    def __init__(self, url: str, take: Taken) -> None:
        self._url, self._take = url, take
        self._connection: Any = None

    async def start(self, subject: str) -> str:
        """Subscribe; returns the target for the instance's record. Raises EngineStartFailed."""
        from runner.net.nats_connection import connect_nats

        self._connection = await connect_nats(self._url)
        await self._connection.subscribe(subject, queue="q", cb=self._taken)
        await self._connection.flush()
        return subject

    async def _taken(self, message: Any) -> None:
        refusal = self._take(message.data, dict(message.headers or {}))
        if message.reply:
            await message.respond((refusal or "").encode())

    async def close(self) -> None:
        """Safe twice."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
