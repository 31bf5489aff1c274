"""Peer: one connection of a libzmq socket, spoken to in ZMTP 3.1 (rfc.zeromq.org/spec/37), our end the bound one.

Owns greeting, NULL handshake and the framing of messages. Knows no EngineCore. libzmq itself would bring a step to the
event loop through a thread of its own: five system calls and a switch of threads, where this takes one read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING_SIZE = 64
_GREETING = (b"\xff" + bytes(8) + b"\x7f" + b"\3\1" + b"NULL").ljust(_GREETING_SIZE, b"\0")
_MECHANISM = slice(12, 32)
_MAX_FRAME = 1 << 30


class Peer(asyncio.Protocol):
    """`kind` is what we are (ROUTER, PULL). `on_message` gets all frames of each message.

    `on_ready` and `on_end` come at most once: the other end can be written to, or is gone. `identity` is its own name.
    """

    def __init__(
        self,
        kind: bytes,
        on_ready: Callable[[Peer], None],
        on_message: Callable[[Peer, list[bytes]], None],
        on_end: Callable[[Peer], None],
    ) -> None:
        self.identity = b""
        self._on_ready = on_ready
        self._kind = kind
        self._on_message = on_message
        self._on_end = on_end
        self._buffer = bytearray()
        self._needed = _GREETING_SIZE
        self._is_greeted = False
        self._frames: list[bytes] = []
        self._transport: asyncio.Transport

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(_GREETING)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end is gone."""
        self._on_end(self)

    def data_received(self, data: bytes) -> None:
        """Whole messages go on, the rest waits. What is no ZMTP ends the connection."""
        self._buffer += data
        if len(self._buffer) < self._needed:
            return
        try:
            if not self._is_greeted:
                self._read_greeting()
            self._read_frames()
        except (ValueError, IndexError):
            self.close()

    # sending

    def send(self, *parts: bytes) -> None:
        """One message, one frame for each part."""
        last = len(parts) - 1
        frames = [_head(0 if at == last else _MORE, len(part)) + part for at, part in enumerate(parts)]
        self._transport.write(b"".join(frames))

    def close(self) -> None:
        """Drop the connection; safe twice."""
        self._transport.abort()

    # receiving

    def _read_greeting(self) -> None:
        greeting = bytes(self._buffer[:_GREETING_SIZE])
        if greeting[0] != 0xFF or greeting[9] != 0x7F or greeting[10] < 3:
            raise ValueError("no greeting of ZMTP 3")
        if greeting[_MECHANISM].rstrip(b"\0") != b"NULL":
            raise ValueError("another mechanism than NULL")
        del self._buffer[:_GREETING_SIZE]
        self._is_greeted = True
        self._send_command(b"READY", _property(b"Socket-Type", self._kind) + _property(b"Identity", b""))

    def _read_frames(self) -> None:
        buffer, at, size = self._buffer, 0, len(self._buffer)
        self._needed = 2
        while size - at >= 2:
            flags, start = buffer[at], at + 2
            end = start + buffer[at + 1]
            if flags & _LONG:
                start = at + 9
                if size < start:
                    self._needed = 9
                    break
                end = start + int.from_bytes(buffer[at + 1 : start], "big")
                if end - start > _MAX_FRAME:
                    raise ValueError(f"a frame of {end - start} bytes")
            if size < end:
                self._needed = end - at
                break
            at = end
            self._take(flags, bytes(buffer[start:end]))
        del buffer[:at]

    def _take(self, flags: int, body: bytes) -> None:
        if flags & _COMMAND:
            self._obey(body[1 : 1 + body[0]], body[1 + body[0] :])
            return
        self._frames.append(body)
        if not flags & _MORE:
            message, self._frames = self._frames, []
            self._on_message(self, message)

    def _obey(self, command: bytes, rest: bytes) -> None:
        if command == b"READY":
            self.identity = _properties(rest).get(b"identity", b"")
            self._on_ready(self)
        elif command == b"PING":
            self._send_command(b"PONG", rest[2:])  # without its time to live
        elif command == b"ERROR":
            raise ValueError(f"the other end says {rest!r}")

    def _send_command(self, name: bytes, data: bytes) -> None:
        body = bytes((len(name),)) + name + data
        self._transport.write(_head(_COMMAND, len(body)) + body)


def _head(flags: int, length: int) -> bytes:
    return bytes((flags, length)) if length < 256 else bytes((flags | _LONG,)) + length.to_bytes(8, "big")


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def _properties(raw: bytes) -> dict[bytes, bytes]:
    """Names in lower case."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(raw):
        middle = at + 1 + raw[at]
        end = middle + 4 + int.from_bytes(raw[middle : middle + 4], "big")
        if end > len(raw):
            raise ValueError("a property is longer than its command")
        found[raw[at + 1 : middle].lower()] = raw[middle + 4 : end]
        at = end
    return found
