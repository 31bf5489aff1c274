"""The response plane at the worker: it calls the ingress home over TCP, one connection a stream (responses.py).

Owns the order of frames of one answer, and hearing that nobody wants it any more. Knows nothing of what the items mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from runner.net.addresses import parse_host_port
from runner.net.codecs import ENCODERS
from runner.net.frames import FrameError, FrameParser, encode_frame
from runner.net.responses import Kind

_SENTINEL = encode_frame(b'"sentinel"')
_STOPS = (b'"stop"', b'"kill"')
_MAX_CONTROL_BYTES = 1 << 20
_LINGER_S = 5.0
_HIGH_WATER_BYTES = 1 << 16


class ResponseWriter:
    """One answer. `on_stop` is called once: by stop, kill, or when the ingress goes away. `close` is safe twice."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        codec: str,
        on_stop: Callable[[], object] = lambda: None,
    ) -> None:
        self.stopped = asyncio.Event()
        self._on_stop = on_stop
        self._reader, self._writer = reader, writer
        self._encode = ENCODERS[codec]
        self._is_over = False
        self._ears = asyncio.create_task(self._listen())

    async def accept(self, error: str | None = None, kind: Kind | None = None) -> None:
        """The prologue: taken, or refused with a reason."""
        said = {"error": error} if kind is None else {"error": error, "llmrun": kind}
        self._writer.write(encode_frame(msgspec.json.encode(said)))
        await self._drain()

    async def send(self, item: Any) -> None:
        """One item; waits while the ingress is behind."""
        self._writer.write(self._frame(item))
        if self._writer.transport.get_write_buffer_size() > _HIGH_WATER_BYTES:
            await self._drain()

    async def finish(self, item: Any = None) -> None:
        """The last item, if there is one, and that the answer is complete: in one write."""
        self._is_over = True
        last = b"" if item is None else self._frame(item)
        final = encode_frame(b"", self._encode({"data": None, "complete_final": True}))
        self._writer.write(last + final + _SENTINEL)
        await self._drain()

    async def fail(self, why: str, kind: Kind = "failed") -> None:
        """An error in the middle of the stream, as Dynamo annotates it, is the last thing said."""
        self._is_over = True
        item = {"data": None, "event": "error", "comment": [why], "llmrun": kind}
        frame = encode_frame(b"", self._encode({"data": item, "complete_final": False}))
        final = encode_frame(b"", self._encode({"data": None, "complete_final": True}))
        self._writer.write(frame + final + _SENTINEL)
        await self._drain()

    def _frame(self, item: Any) -> bytes:
        return encode_frame(b"", self._encode({"data": {"data": item}, "complete_final": False}))

    async def _drain(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def _listen(self) -> None:
        parser = FrameParser(_MAX_CONTROL_BYTES)
        with contextlib.suppress(OSError, FrameError):
            while data := await self._reader.read(4096):
                if any(frame.header in _STOPS for frame in parser.feed(data)):
                    self._stop()
        self._stop()

    def _stop(self) -> None:
        if not self.stopped.is_set():
            self.stopped.set()
            if not self._is_over:
                self._on_stop()

    async def close(self, *, linger: bool = True) -> None:
        """Wait a little for the ingress to close, then close. Safe twice."""
        self._is_over = True
        if linger:
            await asyncio.wait({self._ears}, timeout=_LINGER_S)
        self._ears.cancel()
        self._writer.close()


async def open_response(
    info: dict[str, Any], codec: str, timeout_s: float = 5.0, on_stop: Callable[[], object] = lambda: None
) -> ResponseWriter:
    """Call home. Raises OSError or TimeoutError when nobody is there, ValueError or KeyError for what is no address."""
    host, port = parse_host_port(info["address"])
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port)
    writer.write(encode_frame(msgspec.json.encode({"subject": info["subject"], "stream_type": "response"})))
    return ResponseWriter(reader, writer, codec, on_stop)
