"""Peer: the child's end of one connection to a process of the launcher. Knows frames and back-pressure, no engine.

Two threads write. The engine thread sends a step's deltas itself (`try_send_tokens`) while nothing is in front of them:
waking the socket thread for each step would take a core from the threads that compute. In every other case, and for
every other message, the socket thread writes, through its transport. One lock keeps frames whole and in order.

Steps shorter than PACE_S are told together: each frame wakes the launcher, which takes a core from the same threads.
The first and the last delta of a stream never wait, and the socket thread sees to it that no other waits long.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from time import monotonic
from typing import Any, Protocol, cast

from runner.engines import frames
from runner.engines.frames import FrameReader, ProtocolError
from runner.engines.merge import merge_tokens, own_delta, push_text
from runner.types import TextDelta, TokenDelta

PACE_S = 0.005
"""Least time between two frames of deltas; the launcher wakes its readers no more often either (link.MIN_PAUSE_S)."""


class Router(Protocol):
    """Whom a peer belongs to."""

    def join(self, peer: Peer) -> None:
        """A connection is there."""

    def leave(self, peer: Peer) -> None:
        """A connection is gone."""

    def handle(self, peer: Peer, kind: int, payload: Any) -> None:
        """Run one message. Raises ProtocolError."""


class Peer(asyncio.Protocol):
    """One connection. Deltas for a slow reader wait here, merged per request, so that memory stays bounded.

    What is sent, in order, and who sends it:

        _direct (engine thread) | _rest: the end of a frame that did not fit | the transport's buffer | _tokens, _texts
    """

    def __init__(self, server: Router, *, is_owner: bool) -> None:
        self.server = server
        self.is_owner = is_owner
        self.ids: dict[int, str] = {}
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._lock = threading.RLock()
        self._direct: socket.socket | None = None
        self._rest = b""
        self._num_queued = 0
        self._is_paused = False
        self._pause_until = 0.0
        self._tokens: dict[int, TokenDelta] = {}
        self._texts: dict[int, list[TextDelta]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the server."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._direct = sock.dup()
        self.server.join(self)

    def data_received(self, data: bytes) -> None:
        """Run every message; a peer that sends garbage is dropped."""
        try:
            for kind, payload in self._reader.feed(data):
                self.server.handle(self, kind, payload)
        except ProtocolError as error:
            print(f"dropping a connection: {error}", file=sys.stderr)  # noqa: T201 (the log file)
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the server."""
        with self._lock:
            if self._direct is not None:
                self._direct.close()
                self._direct = None
        self.server.leave(self)

    def pause_writing(self) -> None:
        """The transport's buffer is above its high-water mark."""
        with self._lock:
            self._is_paused = True

    def resume_writing(self) -> None:
        """The reader has caught up."""
        with self._lock:
            self._is_paused = False
            self._flush()

    def send(self, kind: int, payload: Any) -> None:
        """Write one message, after all that waits."""
        with self._lock:
            self._flush()
            self._write(kind, payload)

    def send_idle(self, kind: int, payload: Any) -> None:
        """Write one message that nobody misses when the reader is slow."""
        with self._lock:
            if not self._is_paused:
                self._write(kind, payload)

    def try_send_tokens(self, deltas: list[tuple[int, TokenDelta]]) -> bool:
        """Engine thread: one step's deltas straight into the socket, or False: have `send_queued` called.

        Also False after a frame that did not fit in whole: deltas stay in order. What comes too soon after the last
        frame, or while the reader is behind, is kept and merged; the next frame has it.
        """
        with self._lock:
            now = monotonic()
            if not self._num_queued and (self._is_paused or (now < self._pause_until and not _is_urgent(deltas))):
                self._keep(deltas)
                return True
            if self._tokens:
                self._keep(deltas)
                deltas[:] = self._tokens.items()  # in place: a queued call holds this list
                self._tokens = {}
            self._pause_until = now + PACE_S
            if not self._send_now(deltas):
                self._num_queued += 1
                return False
            return True

    def send_kept(self) -> None:
        """Socket thread, now and then: what waits for a next step that does not come soon."""
        with self._lock:
            if self._tokens and not self._is_paused and not self._num_queued and monotonic() >= self._pause_until:
                self._flush()

    def _keep(self, deltas: list[tuple[int, TokenDelta]]) -> None:
        for key, delta in deltas:
            waiting = self._tokens.get(key)
            self._tokens[key] = own_delta(delta) if waiting is None else merge_tokens(waiting, delta)

    def _send_now(self, deltas: list[tuple[int, TokenDelta]]) -> bool:
        transport = self._transport
        if self._direct is None or transport is None or self._num_queued or self._is_paused or self._rest:
            return False
        if transport.is_closing() or transport.get_write_buffer_size():
            return False
        frame = frames.encode(frames.DELTAS, deltas)
        try:
            num_sent = self._direct.send(frame)
        except OSError:  # full, or gone, of which the transport hears too
            return False
        if num_sent == len(frame):
            return True
        self._rest = bytes(frame[num_sent:])
        deltas.clear()
        return False

    def send_queued(self, deltas: list[tuple[int, TokenDelta]]) -> None:
        """Socket thread: what `try_send_tokens` left."""
        with self._lock:
            self._num_queued -= 1
            self._write_rest()
            if deltas:
                self.send_tokens(deltas)

    def send_tokens(self, deltas: list[tuple[int, TokenDelta]]) -> None:
        """One step's deltas in one write."""
        with self._lock:
            if not self._is_paused:
                self._write(frames.DELTAS, deltas)
                return
            self._keep(deltas)

    def send_texts(self, deltas: list[tuple[int, TextDelta]]) -> None:
        """As send_tokens, for text."""
        with self._lock:
            if not self._is_paused:
                self._write(frames.TEXTS, deltas)
                return
            for key, delta in deltas:
                push_text(self._texts.setdefault(key, []), delta)

    def forget(self, key: int) -> None:
        """Drop what waits for a cancelled request."""
        with self._lock:
            self._tokens.pop(key, None)
            self._texts.pop(key, None)

    def close(self) -> None:
        """Write out what waits, then close."""
        with self._lock:
            self._write_rest()
            self._flush()
            assert self._transport is not None
            self._transport.close()

    def _flush(self) -> None:
        if self._tokens:
            tokens, self._tokens = self._tokens, {}
            self._write(frames.DELTAS, list(tokens.items()))
        if self._texts:
            texts, self._texts = self._texts, {}
            self._write(frames.TEXTS, [(key, delta) for key, waiting in texts.items() for delta in waiting])

    def _write_rest(self) -> None:
        assert self._transport is not None
        rest, self._rest = self._rest, b""
        if rest and not self._transport.is_closing():
            self._transport.write(rest)

    def _write(self, kind: int, payload: Any) -> None:
        self._write_rest()
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(frames.encode(kind, payload))


def _is_urgent(deltas: list[tuple[int, TokenDelta]]) -> bool:
    """Whether one is the first of its stream, or the last."""
    return any(delta.finish is not None or delta.cached_tokens is not None for _, delta in deltas)
