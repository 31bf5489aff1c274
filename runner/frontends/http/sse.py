"""Server-sent events over one aiohttp response: opening late, writing fast, back-pressure, keep-alive.

The token path writes straight to the transport, framed for chunked transfer: no coroutine, no copy through layers, one
system call for each event. Knows nothing of what the events say.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from runner.openai_responses import PING

OPEN_AFTER_S = 1.5
"""An answer that has no first token by then sends its head, so that keep-alive comments can follow. Errors before that
time are plain HTTP errors with a status; later ones are error events."""
PING_EVERY_S = 15.0
_HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    "X-Accel-Buffering": "no",
}


class EventStream:
    """One response. `preamble` goes out with the head, at the first `open` or after OPEN_AFTER_S."""

    def __init__(self, request: web.Request, pinger: Pinger, preamble: bytes = b"") -> None:
        self._request = request
        self._pinger = pinger
        self._preamble = preamble
        self._is_chunked = request.version >= (1, 1)
        self.response = web.StreamResponse(headers=_HEADERS)
        if self._is_chunked:
            self.response.enable_chunked_encoding()
        else:
            self.response.force_close()
        self._writer: AbstractStreamWriter
        self._transport: asyncio.WriteTransport
        self._protocol = request.protocol
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = False
        self.is_waiting = False
        self.num_writes = 0

    def open_later(self) -> None:
        """Open after OPEN_AFTER_S unless `open` came first."""
        self._timer = asyncio.get_running_loop().call_later(OPEN_AFTER_S, self._start_opening)

    def _start_opening(self) -> None:
        self._opening = asyncio.create_task(self._send_head(b""))

    async def open(self, data: bytes) -> None:
        """Send the head if it was not sent, and the first event."""
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is None:
            await self._send_head(data)
            return
        await self._opening
        if data:
            self.write(data)

    async def _send_head(self, data: bytes) -> None:
        writer = await self.response.prepare(self._request)
        transport = self._request.transport
        if writer is None or transport is None:
            raise ConnectionResetError("the client is gone")
        self._writer, self._transport = writer, transport
        await self.response.write(self._preamble + data or PING)
        self.is_open = True
        self._pinger.add(self)

    def write(self, data: bytes) -> bool:
        """Hand bytes to the transport now; returns whether to `drain` before the next write, as the client is slow.

        Raises ConnectionResetError when the client is gone.
        """
        transport = self._transport
        if transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self.num_writes += 1
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
        return self._protocol.writing_paused

    async def drain(self) -> None:
        """Wait until the client has read enough."""
        self.is_waiting = True
        try:
            await self._writer.drain()
        finally:
            self.is_waiting = False

    async def close(self, data: bytes) -> web.StreamResponse:
        """Write the last events and end the response."""
        await self.open(b"") if not self.is_open else None
        self._pinger.remove(self)
        await self.response.write_eof(data)
        return self.response

    async def abandon(self) -> None:
        """Whatever happened, leave nothing behind. Safe twice."""
        self._pinger.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)


class Pinger:
    """One task that sends keep-alive comments on streams that were silent since its last round: 15 to 30 s apart."""

    def __init__(self, every_s: float = PING_EVERY_S) -> None:
        self._every_s = every_s
        self._seen: dict[EventStream, int] = {}

    def add(self, stream: EventStream) -> None:
        """Watch an open stream."""
        self._seen[stream] = -1

    def remove(self, stream: EventStream) -> None:
        """Stop watching."""
        self._seen.pop(stream, None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            self._round()

    def _round(self) -> None:
        for stream, seen in self._seen.items():
            if stream.num_writes == seen and not stream.is_waiting:
                with contextlib.suppress(ConnectionResetError):  # its own task is being cancelled
                    stream.write(PING)
            self._seen[stream] = stream.num_writes
