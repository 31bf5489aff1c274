"""Two-part frames of the request and response planes (Dynamo's TwoPartCodec).

    u64be header length | u64be body length | u64be xxh3_64(header + body) | header | body

Peers of 0.3 need the real checksum; newer ones may send 0, which means: none.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

_HEAD = struct.Struct(">QQQ")
MAX_FRAME_BYTES = 64 << 20
"""Larger frames are refused before anything of them is stored."""


class FrameError(Exception):
    """What a peer sent is no frame; the connection cannot be used any more."""


class Frame(NamedTuple):
    """Header and body; either may be empty."""

    header: bytes
    body: bytes


def encode_frame(header: bytes = b"", body: bytes = b"") -> bytes:
    """One frame with its checksum."""
    both = header + body
    return _HEAD.pack(len(header), len(body), xxhash.xxh3_64_intdigest(both)) + both


def decode_frame(data: bytes, max_bytes: int = MAX_FRAME_BYTES) -> Frame:
    """Exactly one frame. Raises FrameError."""
    parser = FrameParser(max_bytes)
    frames = parser.feed(data)
    if len(frames) != 1 or parser.num_waiting:
        raise FrameError(f"{len(data)} bytes are not one frame")
    return frames[0]


class FrameParser:
    """Bytes in as they come, whole frames out. Holds at most one unfinished frame of `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._waiting = bytearray()

    @property
    def num_waiting(self) -> int:
        """Bytes of the unfinished frame."""
        return len(self._waiting)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete. Raises FrameError."""
        waiting = self._waiting
        buffer: bytes | bytearray = data  # whole frames are the rule, and are not copied
        if waiting:
            waiting += data
            buffer = waiting
        frames: list[Frame] = []
        at = 0
        while len(buffer) - at >= _HEAD.size:
            header_len, body_len, checksum = _HEAD.unpack_from(buffer, at)
            if header_len + body_len > self._max_bytes:
                raise FrameError(f"a frame of {header_len + body_len} bytes; at most {self._max_bytes} are taken")
            start = at + _HEAD.size
            end = start + header_len + body_len
            if len(buffer) < end:
                break
            both = bytes(buffer[start:end])
            if checksum and xxhash.xxh3_64_intdigest(both) != checksum:
                raise FrameError("the checksum of a frame is wrong")
            frames.append(Frame(both[:header_len], both[header_len:]))
            at = end
        if buffer is waiting:
            del waiting[:at]
        elif at < len(buffer):
            waiting += buffer[at:]
        return frames
