"""One HTTP/1.1 connection, as lean as a measuring client must be: it shares the machine with what it measures.

While bytes arrive it only notes the time and keeps them; response.py reads them once the answer is complete. Owns
sending, the end of a response, and time limits. Knows nothing of JSON or of server-sent events.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

_END_OF_CHUNKS = b"0\r\n\r\n"
_HEAD_END = b"\r\n\r\n"


class RawResponse(msgspec.Struct):
    """Bytes of one response as they came: `packets[i]` at `times_s[i]`; the first ones hold the head."""

    packets: list[bytes] = []
    times_s: list[float] = []


class ConnectionFailed(Exception):
    """The server closed, reset or stalled before the response was complete."""


class Connection(asyncio.Protocol):
    """One request at a time. `is_open` tells whether another one can follow."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._response = RawResponse()
        self._done: asyncio.Future[RawResponse] | None = None
        self._body_left: int | None = None
        self._is_chunked = False
        self._has_head = False
        self._keeps_open = True

    @property
    def has_answered(self) -> bool:
        """Whether any byte of the current response has come."""
        return bool(self._response.packets)

    async def send(self, request: bytes, timeout_s: float) -> RawResponse:
        """Send one request and wait for the whole response. Raises ConnectionFailed."""
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        self._response = RawResponse()
        self._has_head = self._is_chunked = False
        self._body_left = None
        self._done = loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, f"no complete answer within {timeout_s:g} s")
        self._transport.write(request)
        try:
            return await self._done
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            timer.cancel()

    def abort(self) -> None:
        """Close at once (a client that vanishes)."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's callback."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """asyncio's callback; runs once a packet, so it does next to nothing."""
        self._response.times_s.append(time.perf_counter())
        self._response.packets.append(data)
        if not self._has_head:
            # A head may end like a last chunk ("max=100\r\n\r\n"): only what follows it counts.
            data = self._read_head()
        elif self._body_left is not None:
            self._body_left -= len(data)
        if self._has_head and self._is_complete(data):
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's callback."""
        self.is_open = False
        until_close = self._has_head and not self._is_chunked and self._body_left is None
        if exc is None and until_close:
            self._finish()
        else:
            self._fail(f"the server closed the connection ({exc or 'end of file'})")

    def _read_head(self) -> bytes:
        """What came of the body with the head's last packet."""
        if len(self._response.packets) > 1:
            # The head was cut: put the packets together and look again. The first packet's time is kept.
            self._response.packets[:] = [b"".join(self._response.packets)]
            del self._response.times_s[1:]
        data = self._response.packets[0]
        at = data.find(_HEAD_END)
        if at < 0:
            return b""
        self._has_head = True
        head = data[:at].lower()
        self._keeps_open = b"\r\nconnection: close" not in head
        self._is_chunked = b"\r\ntransfer-encoding: chunked" in head
        _, found, rest = head.partition(b"\r\ncontent-length:")
        if found:
            self._body_left = int(rest.split(b"\r\n", 1)[0]) - (len(data) - at - len(_HEAD_END))
        return data[at + len(_HEAD_END) :]

    def _is_complete(self, data: bytes) -> bool:
        if self._body_left is not None:
            return self._body_left <= 0
        if not self._is_chunked:
            return False
        if 0 < len(data) < len(_END_OF_CHUNKS) and len(self._response.packets) > 1:
            data = b"".join(self._response.packets[1:][-len(_END_OF_CHUNKS) :])
        # A chunk's data ends with "\r\n" before the next size, so a payload cannot end like this.
        return data.endswith(_END_OF_CHUNKS)

    def _finish(self) -> None:
        if not self._keeps_open:
            self.abort()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._response)

    def _fail(self, reason: str) -> None:
        self.abort()
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionFailed(reason))
