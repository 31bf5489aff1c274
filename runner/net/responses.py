"""The response plane: workers call the ingress home over TCP, one connection a stream (Dynamo's tcp_server).

    worker: {"subject", "stream_type":"response"} | {"error": null or text} | items … | complete_final | "sentinel"
    ingress, at any time: "stop" or "kill"

Owns the ingress' end (the worker's is answers.py). Knows nothing of what the items mean.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import Any, Literal, cast

import msgspec

from runner.net.codecs import DECODERS
from runner.net.frames import Frame, FrameError, FrameParser, encode_frame

Kind = Literal["request", "unsupported", "busy", "died", "failed"]
"""What kind of error a worker answers with; said between two llmrun only."""
_HIGH, _HIGH_BYTES = 256, 1 << 20
"""Items, and their bytes, that may wait for a slow reader before the worker is held up."""
_HANDSHAKE_S = 10.0
_LINGER_S = 2.0
_MAX_HANDSHAKE_BYTES = 1 << 20


class StreamBroken(Exception):
    """The stream ended before it was complete: the worker, or the way to it, is gone."""


class StreamRefused(Exception):
    """The worker answered with an error instead of a stream, or of the rest of one."""

    def __init__(self, why: str, kind: str = "failed") -> None:
        super().__init__(why)
        self.kind = kind


class ResponseStream:
    """One answer at the ingress. Make it with CallHome.expect; `close` is safe twice."""

    def __init__(self, home: CallHome, subject: str, codec: str) -> None:
        self.subject = subject
        self._home = home
        self.heard_at = asyncio.get_running_loop().time()
        """When the worker last said something, on the loop's clock."""
        self._decode = DECODERS[codec]
        self._items: deque[Any] = deque()
        self._waiting_bytes = 0
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
        if not self._items and timeout_s is None:
            await self._fill()
        elif not self._items:
            async with asyncio.timeout(timeout_s):
                await self._fill()
        items = list(self._items)
        self._items.clear()
        self._waiting_bytes = 0
        if self._connection is not None:
            self._connection.hold(False)
        return items

    async def _fill(self) -> None:
        """Returns when items wait or none will come. Raises what ended the stream."""
        while not self._items:
            if self._end is not None:
                raise self._end
            if self._is_complete:
                return
            self._wake.clear()
            await self._wake.wait()

    def fail(self, why: str) -> None:
        """End the stream from our side, as broken."""
        self._finish(StreamBroken(why))
        self.close()

    def close(self, *, is_answered: bool = False) -> None:
        """Forget the stream; the worker is told to stop, unless it has finished or is about to (`is_answered`)."""
        self._home.forget(self.subject)
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if is_answered and not self._is_complete:
            connection.linger()
        else:
            connection.leave(is_kill=not self._is_complete)

    # called by the connection

    def attach(self, connection: _HomeConnection) -> None:
        """The worker is here."""
        self._connection = connection

    def take_frame(self, frame: Frame) -> None:
        """Raises FrameError for what does not belong here."""
        self.heard_at = asyncio.get_running_loop().time()
        if frame.header:
            self._take_header(frame.header)
        if not frame.body:
            return
        if not self._prologue or self._is_complete:
            raise FrameError("an item out of its turn")
        try:
            message = self._decode(frame.body)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"an item cannot be read: {error}") from None
        wrapped = message.get("data") if isinstance(message, dict) else message
        if isinstance(wrapped, dict):
            self._take_item(wrapped, len(frame.body))
        elif wrapped is not None or not isinstance(message, dict):
            raise FrameError("an item is no object")
        if message.get("complete_final") is True:
            self._is_complete = True
        self._wake.set()

    def _take_item(self, wrapped: dict[str, Any], num_bytes: int) -> None:
        if wrapped.get("event") == "error":
            self._finish(StreamRefused(_words(wrapped.get("comment")), _kind(wrapped)))
        elif wrapped.get("data") is not None:
            self._items.append(wrapped["data"])
            self._waiting_bytes += num_bytes
            if (len(self._items) >= _HIGH or self._waiting_bytes >= _HIGH_BYTES) and self._connection is not None:
                self._connection.hold(True)

    def _take_header(self, header: bytes) -> None:
        try:
            said = msgspec.json.decode(header)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"a header cannot be read: {error}") from None
        if isinstance(said, dict) and not self._prologue:
            if said.get("error"):
                self._finish(StreamRefused(_words(said["error"]), _kind(said)))
            self._prologue = True
        elif said == "sentinel" and self._prologue:
            self._is_complete = True  # 0.3 and 0.4 send no complete_final
        else:
            raise FrameError("a header out of its turn")
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


def _words(said: Any) -> str:
    """An error's text, whatever a peer makes of it; at most 1,000 characters."""
    if isinstance(said, list):
        said = "; ".join(one for one in said if isinstance(one, str))
    return said[:1000] if said and isinstance(said, str) else "no reason given"


def _kind(said: dict[str, Any]) -> str:
    kind = said.get("llmrun")
    return kind if isinstance(kind, str) else "failed"


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
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._timer = asyncio.get_running_loop().call_later(_HANDSHAKE_S, self._transport.abort)

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
        except (ValueError, RecursionError):
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

    def linger(self) -> None:
        """The answer is here; let the worker say its last words, a little while."""
        self.hold(False)
        asyncio.get_running_loop().call_later(_LINGER_S, self.leave)

    def leave(self, *, is_kill: bool = False) -> None:
        """Close; with a word to the worker if it is still at it."""
        if self._transport is not None and not self._transport.is_closing():
            if is_kill:
                self._transport.write(encode_frame(b'"kill"'))
            self._transport.close()
