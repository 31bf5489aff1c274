"""Link: the launcher's end of one connection to a child, and the streams on it. Knows frames, not processes.

A stream holds ONE waiting delta: while its reader is busy, further deltas are merged into it, so one wake-up may carry
several tokens and the cost of a token falls under load. Readers are woken at a bounded rate in all, because every
wake-up ends in a system call for a few bytes: an engine that makes steps faster than that gets its steps merged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from time import monotonic
from typing import Any, cast

from runner.engines import frames
from runner.engines.failures import to_exception
from runner.engines.frames import ErrorReply, FrameReader, FrameTooLarge, Heartbeat, ProtocolError
from runner.engines.merge import merge_tokens, push_text
from runner.errors import EngineDied, EngineError, LlmrunError, RequestError, UnsupportedField
from runner.types import ChatRequest, EmbedRequest, EmbedResult, TextDelta, TokenDelta, TokenRequest

WAKE_S = 0.0003
"""Time between two wake-ups, on average over all streams: 64 streams are woken every 19 ms at most."""
MIN_PAUSE_S, MAX_PAUSE_S = 0.005, 0.02
"""However few or many streams there are: tokens that come faster than 200 a second come in pairs, and none waits longer
than 20 ms and a step. A stream's first and last deltas never wait."""
_LATE_S = 0.01
"""A step that comes so late after a pause is not waited for."""


class _Stream:
    """What waits for one reader. `waiter` is set while the reader sleeps."""

    __slots__ = ("error", "is_begun", "texts", "tokens", "waiter")

    def __init__(self) -> None:
        self.is_begun = False
        self.tokens: TokenDelta | None = None
        self.texts: list[TextDelta] = []
        self.error: LlmrunError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let the reader run, if it sleeps."""
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)


class Link(asyncio.Protocol):
    """One connection. `on_message` gets what belongs to no stream; `on_lost` is called once, when it is over."""

    def __init__(self, on_message: Callable[[int, Any], None], on_lost: Callable[[Link, str], None]) -> None:
        self.last_beat = Heartbeat({})
        self.num_beats = 0
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self.streams: dict[int, _Stream] = {}
        self.replies: dict[int, asyncio.Future[Any]] = {}
        self._last_key = 0
        self._writable: asyncio.Future[None] | None = None
        self._pause_until = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self.broken: str | None = None
        """Why the link is of no use any more (empty: the connection just ended); None while it is fine."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        """Fan out. One call carries whole steps: all their deltas are pushed before any reader runs."""
        try:
            for kind, payload in self._reader.feed(data):
                if kind == frames.DELTAS:
                    self.push_tokens(payload)
                else:
                    self._handle(kind, payload)
        except ProtocolError as error:
            self._break(f"it sent what is no frame of ours ({error})")

    def connection_lost(self, exc: Exception | None) -> None:
        """The child is gone, or closed the connection."""
        self._break("" if exc is None else f"the connection broke: {exc}")

    def pause_writing(self) -> None:
        """The child does not read: new requests wait."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """The child reads again."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def _break(self, why: str) -> None:
        if self.broken is None:
            self.broken = why
            self.resume_writing()
            if self._pause is not None:
                self._pause.cancel()
            if self._transport is not None:
                self._transport.abort()
            self._on_lost(self, why)

    def abandon(self, why: str) -> None:
        """Give the connection up, as if it had ended."""
        self._break(why)

    def fail(self, message: str, kind: type[EngineError] = EngineDied) -> None:
        """End every stream and every wait with an error. Deltas that came before it are still delivered."""
        self._break(message)
        for stream in self.streams.values():
            if stream.error is None:
                stream.error = kind(message)
            stream.wake()
        for reply in self.replies.values():
            if not reply.done():
                reply.set_exception(kind(message))

    def close(self) -> None:
        """Close the connection; nothing is told."""
        if self._transport is not None:
            self._transport.close()

    # receiving

    def push_tokens(self, deltas: list[tuple[int, TokenDelta]]) -> None:
        """The hot path: well under a microsecond a delta before its reader wakes."""
        streams = self.streams
        is_pause = monotonic() < self._pause_until
        is_left = False
        for key, delta in deltas:
            stream = streams.get(key)
            if stream is None:  # cancelled while this was on its way
                continue
            waiting = stream.tokens
            stream.tokens = delta if waiting is None else merge_tokens(waiting, delta)
            waiter = stream.waiter
            if waiter is None:
                continue
            if is_pause and stream.is_begun and delta.finish is None:
                is_left = True
                continue
            stream.is_begun = True
            stream.waiter = None
            if not waiter.done():
                waiter.set_result(None)
        if not is_pause:
            self._end_pause()
        elif is_left and self._pause is None:
            self._pause = self._loop.call_later(self._pause_until - monotonic() + _LATE_S, self._end_pause)

    def _end_pause(self) -> None:
        """Wake all whose tokens were left, and begin the next pause."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            for stream in self.streams.values():
                if stream.tokens is not None:
                    stream.wake()
        self._pause_until = monotonic() + min(MAX_PAUSE_S, max(MIN_PAUSE_S, WAKE_S * len(self.streams)))

    def _handle(self, kind: int, payload: Any) -> None:
        if kind == frames.TEXTS:
            for key, delta in payload:
                stream = self.streams.get(key)
                if stream is not None:
                    push_text(stream.texts, delta)
                    stream.wake()
        elif kind == frames.ERROR:
            self.end_with_error(payload)
        elif kind == frames.HEARTBEAT:
            self.last_beat = payload
            self.num_beats += 1
        elif kind in (frames.EMBEDDED, frames.STATS_REPLY):
            key, result = payload
            reply = self.replies.get(key)
            if reply is not None and not reply.done():
                reply.set_result(result)
        else:
            self._on_message(kind, payload)

    def end_with_error(self, reply: ErrorReply) -> None:
        """The end of one stream or wait."""
        stream = self.streams.get(reply.key)
        if stream is not None:
            stream.error = to_exception(reply)
            stream.wake()
        future = self.replies.get(reply.key)
        if future is not None and not future.done():
            future.set_exception(to_exception(reply))

    # sending

    def send(self, kind: int, payload: Any) -> None:
        """Write one message. Raises FrameTooLarge; says nothing when the link is broken."""
        frame = frames.encode(kind, payload)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    async def submit(self, kind: int, key: int, request: TokenRequest | ChatRequest | EmbedRequest) -> None:
        """Send a request under `key`. Raises RequestError for one that cannot be sent."""
        if self._writable is not None:
            await asyncio.shield(self._writable)
        try:
            self.send(kind, (key, request))
        except FrameTooLarge as error:
            raise RequestError(f"the request is too long for the engine: {error}") from error
        except OverflowError as error:
            raise RequestError(f"a number of the request is too large: {error}") from error

    def next_key(self) -> int:
        """For a new request. Raises EngineDied when the link is broken."""
        if self.broken is not None:
            raise EngineDied(f"the engine's process is gone: {self.broken or 'the connection ended'}")
        self._last_key += 1
        return self._last_key

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """One token stream; closing it cancels it in the child."""
        key = self.next_key()
        stream = self.streams[key] = _Stream()
        is_over = False
        new_future = self._loop.create_future
        try:
            await self.submit(frames.GENERATE, key, request)
            while True:
                delta = stream.tokens
                if delta is not None:
                    stream.tokens = None
                    is_over = delta.finish is not None
                    yield delta
                    if is_over:
                        return
                elif stream.error is not None:
                    is_over = True
                    raise stream.error
                else:
                    stream.waiter = waiter = new_future()
                    await waiter
        finally:
            self.leave(key, is_over)

    async def load_adapter(self, name: str, path: str, *, replace: bool = False) -> list[str]:
        """See AdapterEngine; returns the names of all adapters. Raises UnsupportedField where the child loads none."""
        raise UnsupportedField("this engine loads adapters at its start only (--lora)", field="lora_name")

    async def unload_adapter(self, name: str) -> list[str]:
        """As load_adapter."""
        raise UnsupportedField("this engine loads adapters at its start only (--lora)", field="lora_name")

    async def chat(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """One text stream (a child of the shape `text`); closing it cancels it in the child."""
        key = self.next_key()
        stream = self.streams[key] = _Stream()
        is_over = False
        try:
            await self.submit(frames.CHAT, key, request)
            while True:
                if stream.texts:
                    delta = stream.texts.pop(0)
                    is_over = delta.usage is not None
                    yield delta
                    if is_over:
                        return
                elif stream.error is not None:
                    is_over = True
                    raise stream.error
                else:
                    stream.waiter = waiter = self._loop.create_future()
                    await waiter
        finally:
            self.leave(key, is_over)

    def leave(self, key: int, is_over: bool) -> None:
        """Forget a stream, and cancel it in the child unless it `is_over`."""
        del self.streams[key]
        if not is_over and self.broken is None:
            self.send(frames.CANCEL, key)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Raises what the child answers."""
        result: EmbedResult = await self._ask(frames.EMBED, request)
        return result

    async def stats(self, timeout_s: float = 1.0) -> dict[str, float]:
        """Fresh numbers, or those of the last heartbeat when a step takes longer than `timeout_s`."""
        try:
            numbers: dict[str, float] = await asyncio.wait_for(self._ask(frames.STATS, None), timeout_s)
        except TimeoutError:
            return self.last_beat.stats
        return numbers

    async def _ask(self, kind: int, request: EmbedRequest | None) -> Any:
        key = self.next_key()
        reply = self.replies[key] = self._loop.create_future()
        is_answered = False
        try:
            if request is None:
                self.send(kind, key)
            else:
                await self.submit(kind, key, request)
            result = await reply
            is_answered = True
            return result
        finally:
            reply.cancel()
            del self.replies[key]
            if not is_answered and kind == frames.EMBED and self.broken is None:
                self.send(frames.CANCEL, key)
