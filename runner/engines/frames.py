"""The private protocol between the launcher and an engine's child process: framing and messages.

A frame is `length (u32 big-endian, of kind + payload) | kind (u8) | payload (msgpack)`. Owns bytes only: it knows no
sockets and no engines. Both ends are always the same release, so there is no version negotiation. Runs on Python 3.10
with msgspec alone, because a child may live in its engine's own environment.

    parent -> child   START spec   GENERATE [key, TokenRequest]   CHAT [key, ChatRequest]   EMBED [key, EmbedRequest]
                      CANCEL key   STATS key   CLOSE   WATCH_BLOCKS
    child -> parent   PROGRESS     READY EngineInfo   FAILED   EMBEDDED   ERROR
                      STATS_REPLY  HEARTBEAT   DELTAS [[key, TokenDelta]...]   TEXTS [[key, TextDelta]...]
                      BLOCKS [BlockEvent...]

`key` is a number that the parent chose; it is unique on its connection only.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Literal

import msgspec

from runner.engines.base import EngineSpec
from runner.engines.block_log import BlockEvent
from runner.types import ChatRequest, EmbedRequest, EmbedResult, EngineInfo, TextDelta, TokenDelta, TokenRequest

START, GENERATE, CHAT, EMBED, CANCEL, STATS, CLOSE, WATCH_BLOCKS = range(1, 9)
PROGRESS, READY, FAILED, DELTAS, TEXTS, EMBEDDED, ERROR, STATS_REPLY, HEARTBEAT, BLOCKS = range(16, 26)

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Larger frames are refused by the sender and taken for corruption by the receiver."""

_HEADER_LEN = 5
_HEADER_SPACE = bytes(_HEADER_LEN)

FOLDER_VARIABLE = "LLMRUN_CHILD_FOLDER"
"""Names, in a child's environment, its private folder: what it leaves there goes with it."""

Shape = Literal["step", "async", "text"]
"""What a child hosts: a StepEngine class, a factory of an Engine, a factory of a TextSource (hosts.py)."""


class ProtocolError(Exception):
    """The bytes are no frames of ours: the other side printed into the socket, or is broken."""


class FrameTooLarge(Exception):
    """A message that was to be sent does not fit into a frame."""


class Start(msgspec.Struct, frozen=True, array_like=True):
    """The first frame to a child: which engine, how it is hosted, and with what."""

    child: str
    shape: Shape
    spec: EngineSpec


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """Where a start is: a phase for people, and the share done (0 to 1) where the engine knows it."""

    phase: str
    share: float | None = None


class Failed(msgspec.Struct, frozen=True, array_like=True):
    """The engine did not start; `reason` is for the user (no traceback; that is in the log)."""

    reason: str
    hint: str = ""


class ErrorReply(msgspec.Struct, frozen=True, array_like=True):
    """The end of one stream. `kind` names a class of runner.errors; `fields` are its keyword arguments."""

    key: int
    kind: str
    message: str
    fields: dict[str, Any] = {}


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """Once a second. `busy_s`: how long the engine has been inside one step (or has blocked its loop)."""

    stats: dict[str, float]
    busy_s: float = 0.0


_encoder = msgspec.msgpack.Encoder()

_PAYLOADS: dict[int, Any] = {
    START: Start,
    GENERATE: tuple[int, TokenRequest],
    CHAT: tuple[int, ChatRequest],
    EMBED: tuple[int, EmbedRequest],
    CANCEL: int,
    STATS: int,
    CLOSE: None,
    WATCH_BLOCKS: None,
    PROGRESS: Progress,
    READY: EngineInfo,
    FAILED: Failed,
    DELTAS: list[tuple[int, TokenDelta]],
    TEXTS: list[tuple[int, TextDelta]],
    EMBEDDED: tuple[int, EmbedResult],
    ERROR: ErrorReply,
    STATS_REPLY: tuple[int, dict[str, float]],
    HEARTBEAT: Heartbeat,
    BLOCKS: list[BlockEvent],
}
_DECODERS = {kind: msgspec.msgpack.Decoder(payload) for kind, payload in _PAYLOADS.items()}


def encode(kind: int, payload: Any, max_bytes: int = MAX_FRAME_BYTES) -> bytearray:
    """One frame, ready to be written. Raises FrameTooLarge."""
    frame = bytearray(_HEADER_SPACE)
    _encoder.encode_into(payload, frame, _HEADER_LEN)
    length = len(frame) - 4
    if length > max_bytes:
        raise FrameTooLarge(f"a message of {length:,} bytes does not fit into a frame of {max_bytes:,} bytes")
    frame[:4] = length.to_bytes(4, "big")
    frame[4] = kind
    return frame


class FrameReader:
    """Cuts received bytes into messages. A frame that is whole in one chunk is decoded in place, without a copy."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._rest = bytearray()
        self._max_bytes = max_bytes

    def feed(self, chunk: bytes) -> Iterator[tuple[int, Any]]:
        """Every message that is complete now, as (kind, payload). Raises ProtocolError at the first bad byte."""
        if not self._rest:
            used = yield from self._cut(memoryview(chunk))
            if used < len(chunk):
                self._rest += memoryview(chunk)[used:]
            return
        self._rest += chunk
        with memoryview(self._rest) as view:
            used = yield from self._cut(view)
        del self._rest[:used]

    def _cut(self, view: memoryview) -> Generator[tuple[int, Any], None, int]:
        """A generator that yields the messages in `view` and returns the number of bytes used."""
        at, end = 0, len(view)
        while end - at >= _HEADER_LEN:
            length = int.from_bytes(view[at : at + 4], "big")
            if not 1 <= length <= self._max_bytes:
                raise ProtocolError(f"a frame of {length:,} bytes was announced; 1 to {self._max_bytes:,} are allowed")
            if end - at < length + 4:
                break
            with view[at + _HEADER_LEN : at + 4 + length] as payload:
                message = _decode(view[at + 4], payload)
            at += length + 4
            yield message
        return at


def _decode(kind: int, payload: memoryview) -> tuple[int, Any]:
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise ProtocolError(f"a frame of the unknown kind {kind}")
    try:
        return kind, decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a frame of kind {kind} cannot be decoded: {error}") from error
