"""The response plane at the worker: it calls the ingress home over TCP, one connection a stream (responses.py).

Owns the order of frames of one answer, and hearing that nobody wants it any more. Knows nothing of what the items mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec

from runner.net.addresses import parse_host_port
from runner.net.codecs import ENCODERS
from runner.net.frames import FrameError, FrameParser, encode_frame
from runner.net.responses import Kind

_SENTINEL = encode_frame(b'"sentinel"')
_STOPS = (b'"stop"', b'"kill"')
_MAX_CONTROL_BYTES = 1 << 20
_LINGER_S = 5.0


class ResponseWriter(asyncio.Protocol):
    """One answer. `on_stop` is called once: by stop, kill, or when the ingress goes away. `close` is safe twice.

    Every answer of a burst has a connection of its own, so what a connection costs counts: no task listens, and the
    handshake goes out with the prologue, in one write.
    """

    def __init__(self, subject: str, codec: str, on_stop: Callable[[], object] = lambda: None) -> None:
        self.stopped = asyncio.Event()
        self._on_stop = on_stop
        self._encode = ENCODERS[codec]
        self._handshake = encode_frame(msgspec.json.encode({"subject": subject, "stream_type": "response"}))
        self._is_over = False
        self._parser = FrameParser(_MAX_CONTROL_BYTES)
        self._transport: asyncio.Transport | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writable: asyncio.Future[None] | None = None
        """While the ingress is behind."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The ingress is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """What the ingress says: stop, or kill."""
        try:
            if any(frame.header in _STOPS for frame in self._parser.feed(data)):
                self._stop()
        except FrameError:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody listens any more."""
        if not self._gone.done():
            self._gone.set_result(None)
        self.resume_writing()
        self._stop()

    def pause_writing(self) -> None:
        """The ingress is behind."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """It has caught up, or is gone."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # the answer

    async def accept(self, error: str | None = None, kind: Kind | None = None) -> None:
        """The prologue: taken, or refused with a reason."""
        said = {"error": error} if kind is None else {"error": error, "llmrun": kind}
        await self._write(encode_frame(msgspec.json.encode(said)))

    async def send(self, item: Any) -> None:
        """One item; waits while the ingress is behind."""
        await self._write(self._frame(item))

    async def finish(self, item: Any = None) -> None:
        """The last item, if there is one, and that the answer is complete: in one write."""
        self._is_over = True
        last = b"" if item is None else self._frame(item)
        final = encode_frame(b"", self._encode({"data": None, "complete_final": True}))
        await self._write(last + final + _SENTINEL)

    async def fail(self, why: str, kind: Kind = "failed") -> None:
        """An error in the middle of the stream, as Dynamo annotates it, is the last thing said; before, a refusal."""
        self._is_over = True
        if self._handshake:
            await self.accept(why, kind)
            return
        item = {"data": None, "event": "error", "comment": [why], "llmrun": kind}
        frame = encode_frame(b"", self._encode({"data": item, "complete_final": False}))
        final = encode_frame(b"", self._encode({"data": None, "complete_final": True}))
        await self._write(frame + final + _SENTINEL)

    def _frame(self, item: Any) -> bytes:
        return encode_frame(b"", self._encode({"data": {"data": item}, "complete_final": False}))

    async def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._handshake:
            data, self._handshake = self._handshake + data, b""
        transport.write(data)
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def _stop(self) -> None:
        if not self.stopped.is_set():
            self.stopped.set()
            if not self._is_over:
                self._on_stop()

    async def close(self, *, linger: bool = True) -> None:
        """Wait a little for the ingress to close, then close. Safe twice."""
        self._is_over = True
        if linger:
            await asyncio.wait({self._gone}, timeout=_LINGER_S)
        if self._transport is not None and not self._transport.is_closing():
            if self._handshake:  # so that the ingress knows at once whose end it is
                self._transport.write(self._handshake)
            self._transport.close()


async def open_response(
    info: dict[str, Any], codec: str, timeout_s: float = 5.0, on_stop: Callable[[], object] = lambda: None
) -> ResponseWriter:
    """Call home. Raises OSError or TimeoutError when nobody is there, ValueError or KeyError for what is no address."""
    host, port = parse_host_port(info["address"])
    writer = ResponseWriter(info["subject"], codec, on_stop)
    async with asyncio.timeout(timeout_s):
        await asyncio.get_running_loop().create_connection(lambda: writer, host, port)
    return writer
