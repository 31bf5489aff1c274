"""The response plane: workers call the ingress home over TCP, one connection a stream (Dynamo's tcp_server).

    worker: {"subject", "stream_type":"response"} | {"error": null or text} | items … | complete_final | "sentinel"
    ingress, at any time: "stop" or "kill"

Owns both ends: `CallHome` at the ingress, `open_response` at the worker. Knows nothing of what the items mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from typing import Any

import msgspec

from runner.net.frames import Frame, FrameError, FrameParser, encode_frame

_ENCODERS = {"json": msgspec.json.Encoder().encode, "msgpack": msgspec.msgpack.Encoder().encode}
_DECODERS = {"json": msgspec.json.Decoder().decode, "msgpack": msgspec.msgpack.Decoder().decode}
_SENTINEL = encode_frame(b'"sentinel"')
_HIGH, _LOW = 256, 64
"""Items that may wait for a slow reader before the worker is held up."""
_HANDSHAKE_S = 10.0
_LINGER_S = 5.0
_MAX_HANDSHAKE_BYTES = 1 << 20


class StreamBroken(Exception):
    """The stream ended before it was complete: the worker, or the way to it, is gone."""


class StreamRefused(Exception):
    """The worker answered with an error instead of a stream."""


class ResponseStream:
    """One answer at the ingress. Make it with CallHome.expect; `close` is safe twice."""

    def __init__(self, home: CallHome, subject: str, codec: str) -> None:
        self.subject = subject
        self._home = home
        self._decode = _DECODERS[codec]
        self._items: deque[Any] = deque()
        self._wake = asyncio.Event()
        self._connection: _HomeConnection | None = None
        self._prologue = False
        self._is_complete = False
        self._end: Exception | None = None

    async def opened(self, timeout_s: float) -> None:
        """Returns when the worker has taken the request. Raises StreamRefused, StreamBroken, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self._prologue:
                if self._end is not None:
                    raise self._end
                self._wake.clear()
                await self._wake.wait()

    async def take(self, timeout_s: float | None = None) -> list[Any]:
        """All items that wait; none: the answer is complete. Raises StreamBroken, StreamRefused, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self._items:
                if self._end is not None:
                    raise self._end
                if self._is_complete:
                    return []
                self._wake.clear()
                await self._wake.wait()
        items = list(self._items)
        self._items.clear()
        if self._connection is not None:
            self._connection.hold(False)
        return items

    def fail(self, why: str) -> None:
        """End the stream from our side, as broken."""
        self._finish(StreamBroken(why))
        self.close()

    def close(self) -> None:
        """Forget the stream; the worker is told to stop if it has not finished."""
        self._home.forget(self.subject)
        if self._connection is not None:
            self._connection.leave(is_kill=not self._is_complete)
            self._connection = None

    # called by the connection

    def attach(self, connection: _HomeConnection) -> None:
        """The worker is here."""
        self._connection = connection

    def take_frame(self, frame: Frame) -> None:
        """Raises FrameError for what does not belong here."""
        if frame.header:
            self._take_header(frame.header)
        if not frame.body:
            return
        try:
            message = self._decode(frame.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FrameError(f"an item cannot be read: {error}") from None
        if not isinstance(message, dict):
            raise FrameError("an item is no object")
        wrapped = message.get("data")
        if isinstance(wrapped, dict):
            if wrapped.get("event") == "error":
                comment = wrapped.get("comment") or ["no reason given"]
                self._finish(StreamRefused("; ".join(map(str, comment))))
            elif wrapped.get("data") is not None:
                self._items.append(wrapped["data"])
                if len(self._items) >= _HIGH and self._connection is not None:
                    self._connection.hold(True)
        if message.get("complete_final"):
            self._is_complete = True
        self._wake.set()

    def _take_header(self, header: bytes) -> None:
        try:
            said = msgspec.json.decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FrameError(f"a header cannot be read: {error}") from None
        if isinstance(said, dict) and not self._prologue:
            if said.get("error"):
                self._finish(StreamRefused(str(said["error"])))
            self._prologue = True
        elif said == "sentinel":
            self._is_complete = True  # 0.3 and 0.4 send no complete_final
        self._wake.set()

    def lost(self, why: str) -> None:
        """The connection ended."""
        if not self._is_complete:
            self._finish(StreamBroken(why))
        self._wake.set()

    def _finish(self, error: Exception) -> None:
        if self._end is None:
            self._end = error
        self._wake.set()


class CallHome:
    """The ingress' server. `address` is what workers are told."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._server: asyncio.Server | None = None
        self._expected: dict[str, ResponseStream] = {}
        self.address = ""

    async def start(self) -> None:
        """Raises OSError when the address cannot be bound."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _HomeConnection(self), self._host, 0)
        name = self._server.sockets[0].getsockname()
        self.address = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    def expect(self, codec: str) -> ResponseStream:
        """A stream that a worker may call home for. Its subject cannot be guessed."""
        stream = ResponseStream(self, secrets.token_hex(16), codec)
        self._expected[stream.subject] = stream
        return stream

    def connection_info(self, stream: ResponseStream, request_id: str) -> dict[str, str]:
        """For the request's header."""
        info = {"address": self.address, "subject": stream.subject, "context": request_id, "stream_type": "response"}
        return {"transport": "tcp_server", "info": msgspec.json.encode(info).decode()}

    def claim(self, subject: str) -> ResponseStream | None:
        """The stream that a caller names; only the first caller gets it."""
        return self._expected.pop(subject, None)

    def forget(self, subject: str) -> None:
        """Nobody may call home for it any more."""
        self._expected.pop(subject, None)

    async def close(self) -> None:
        """Safe twice."""
        if self._server is not None:
            self._server.close()
            self._server = None


class _HomeConnection(asyncio.Protocol):
    """One worker calling home."""

    def __init__(self, home: CallHome) -> None:
        self._home = home
        self._parser = FrameParser()
        self._stream: ResponseStream | None = None
        self._transport: asyncio.Transport | None = None
        self._is_held = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(_HANDSHAKE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._parser.feed(data):
                if self._stream is None:
                    self._shake_hands(frame)
                else:
                    self._stream.take_frame(frame)
            if self._stream is None and self._parser.num_waiting > _MAX_HANDSHAKE_BYTES:
                raise FrameError("the handshake is too long")
        except FrameError as error:
            self._drop(str(error))

    def _shake_hands(self, frame: Frame) -> None:
        try:
            said = msgspec.json.decode(frame.header)
        except (msgspec.DecodeError, UnicodeDecodeError):
            said = None
        subject = said.get("subject") if isinstance(said, dict) else None
        stream = self._home.claim(subject) if isinstance(subject, str) else None
        if stream is None:
            raise FrameError("nobody waits for this stream")
        if self._timer is not None:
            self._timer.cancel()
        self._stream = stream
        stream.attach(self)

    def _drop(self, why: str) -> None:
        if self._stream is not None:
            self._stream.lost(why)
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._stream.lost("the connection ended before the answer was complete")

    def hold(self, is_held: bool) -> None:
        """Back-pressure: do not read while the reader is behind."""
        if self._transport is None or is_held == self._is_held or self._transport.is_closing():
            return
        self._is_held = is_held
        if is_held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def leave(self, *, is_kill: bool) -> None:
        """Close; with a word to the worker if it is still at it."""
        if self._transport is not None and not self._transport.is_closing():
            if is_kill:
                self._transport.write(encode_frame(b'"kill"'))
            self._transport.close()


class ResponseWriter:
    """One answer at the worker. `is_stopped` is set by stop, kill and by the ingress going away."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, codec: str) -> None:
        self.stopped = asyncio.Event()
        self._reader, self._writer = reader, writer
        self._encode = _ENCODERS[codec]
        self._ears = asyncio.create_task(self._listen())

    async def accept(self, error: str | None = None) -> None:
        """The prologue: taken, or refused with a reason."""
        self._writer.write(encode_frame(msgspec.json.encode({"error": error})))
        await self._drain()

    async def send(self, item: Any) -> None:
        """One item; waits while the ingress is behind."""
        self._writer.write(encode_frame(b"", self._encode({"data": {"data": item}, "complete_final": False})))
        if self._writer.transport.get_write_buffer_size() > 1 << 16:
            await self._drain()

    async def fail(self, why: str) -> None:
        """An error in the middle of the stream, as Dynamo annotates it."""
        item = {"data": None, "event": "error", "comment": [why]}
        self._writer.write(encode_frame(b"", self._encode({"data": item, "complete_final": False})))
        await self.finish()

    async def finish(self) -> None:
        """The answer is complete."""
        self._writer.write(encode_frame(b"", self._encode({"data": None, "complete_final": True})) + _SENTINEL)
        await self._drain()

    async def _drain(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def _listen(self) -> None:
        parser = FrameParser(_MAX_HANDSHAKE_BYTES)
        with contextlib.suppress(OSError, FrameError):
            while data := await self._reader.read(4096):
                if any(frame.header in (b'"stop"', b'"kill"') for frame in parser.feed(data)):
                    self.stopped.set()
        self.stopped.set()

    async def close(self, *, linger: bool = True) -> None:
        """Wait a little for the ingress to close, then close. Safe twice."""
        if linger:
            await asyncio.wait({self._ears}, timeout=_LINGER_S)
        self._ears.cancel()
        self._writer.close()


async def open_response(info: dict[str, str], codec: str, timeout_s: float = 5.0) -> ResponseWriter:
    """Call home. Raises OSError or TimeoutError when nobody is there, ValueError for what is no address."""
    host, _, port = info["address"].rpartition(":")
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(encode_frame(msgspec.json.encode({"subject": info["subject"], "stream_type": "response"})))
    return ResponseWriter(reader, writer, codec)


def decode_item(codec: str, body: bytes) -> Any:
    """A request's body. Raises ValueError (msgspec.DecodeError is one)."""
    return _DECODERS[codec](body)


def encode_item(codec: str, item: Any) -> bytes:
    """A request's body."""
    return _ENCODERS[codec](item)
