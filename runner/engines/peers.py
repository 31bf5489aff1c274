"""Peer: the child's end of one connection to a process of the launcher. Knows frames and back-pressure, no engine."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Protocol, cast

from runner.engines import frames
from runner.engines.frames import FrameReader, ProtocolError
from runner.engines.merge import merge_tokens, own_delta, push_text
from runner.types import TextDelta, TokenDelta


class Router(Protocol):
    """Whom a peer belongs to."""

    def join(self, peer: Peer) -> None:
        """A connection is there."""

    def leave(self, peer: Peer) -> None:
        """A connection is gone."""

    def handle(self, peer: Peer, kind: int, payload: Any) -> None:
        """Run one message. Raises ProtocolError."""


class Peer(asyncio.Protocol):
    """One connection. Deltas for a slow reader wait here, merged per request, so that memory stays bounded."""

    def __init__(self, server: Router, *, is_owner: bool) -> None:
        self.server = server
        self.is_owner = is_owner
        self.ids: dict[int, str] = {}
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._is_paused = False
        self._tokens: dict[int, TokenDelta] = {}
        self._texts: dict[int, list[TextDelta]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the server."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
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
        self.server.leave(self)

    def pause_writing(self) -> None:
        """The transport's buffer is above its high-water mark."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """The reader has caught up."""
        self._is_paused = False
        self._flush()

    def send(self, kind: int, payload: Any) -> None:
        """Write one message, after all that waits."""
        self._flush()
        self._write(kind, payload)

    def send_idle(self, kind: int, payload: Any) -> None:
        """Write one message that nobody misses when the reader is slow."""
        if not self._is_paused:
            self._write(kind, payload)

    def send_tokens(self, deltas: list[tuple[int, TokenDelta]]) -> None:
        """One step's deltas in one write."""
        if not self._is_paused:
            self._write(frames.DELTAS, deltas)
            return
        for key, delta in deltas:
            waiting = self._tokens.get(key)
            self._tokens[key] = own_delta(delta) if waiting is None else merge_tokens(waiting, delta)

    def send_texts(self, deltas: list[tuple[int, TextDelta]]) -> None:
        """As send_tokens, for text."""
        if not self._is_paused:
            self._write(frames.TEXTS, deltas)
            return
        for key, delta in deltas:
            push_text(self._texts.setdefault(key, []), delta)

    def forget(self, key: int) -> None:
        """Drop what waits for a cancelled request."""
        self._tokens.pop(key, None)
        self._texts.pop(key, None)

    def close(self) -> None:
        """Write out what waits, then close."""
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

    def _write(self, kind: int, payload: Any) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(frames.encode(kind, payload))
