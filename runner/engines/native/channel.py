"""What the ranks of one engine say to each other outside of tensors: messages over a stream socket, read by a thread.

Owns framing, the plan's encoding and noticing the other end's death at once, also while the main thread computes.
Tensors go through torch.distributed; nothing here knows torch.

    frame = length (u32, big-endian) | msgpack [kind, payload]
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from runner.engines.native.plan import StepPlan

LOST = "lost"
"""The kind of the message that a channel makes itself when its other end is gone."""
_MAX_BYTES = 256 * 1024 * 1024
_FIELDS = tuple(field.name for field in dataclasses.fields(StepPlan))


def pack_plan(plan: StepPlan) -> list[tuple[list[int], bytes]]:
    """A plan as shapes and bytes."""
    return [(list(array.shape), array.tobytes()) for array in (getattr(plan, name) for name in _FIELDS)]


def unpack_plan(packed: list[tuple[list[int], bytes]]) -> StepPlan:
    """The plan that pack_plan took apart."""
    arrays = [np.frombuffer(data, np.int32).reshape(shape) for shape, data in packed]
    return StepPlan(**dict(zip(_FIELDS, arrays, strict=True)))


class Channel:
    """One connection. `on_lost(reason)`, if given, runs in the reading thread the instant the other end is gone."""

    def __init__(self, sock: socket.socket, on_lost: Callable[[str], None] | None = None) -> None:
        with contextlib.suppress(OSError):  # a Unix-domain socket has no such option
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)
        self._socket = sock
        self._on_lost = on_lost
        self._messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._is_closing = False
        self._reader = threading.Thread(target=self._read, name="rank-channel", daemon=True)
        self._reader.start()

    def watch(self, on_lost: Callable[[str], None]) -> None:
        """From now on tell this one."""
        self._on_lost = on_lost

    def send(self, kind: str, payload: Any = None) -> None:
        """Write one message. Raises OSError when the other end is gone."""
        body = msgspec.msgpack.encode((kind, payload))
        self._socket.sendall(len(body).to_bytes(4, "big") + body)

    def receive(self, timeout_s: float | None = None) -> tuple[str, Any] | None:
        """The next message, None after `timeout_s` without one; ("lost", reason) when the other end is gone."""
        try:
            return self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Safe twice."""
        self._is_closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self) -> None:
        reason = "its connection ended"
        try:
            while True:
                length = int.from_bytes(self._exactly(4), "big")
                if length > _MAX_BYTES:
                    reason = f"it sent a frame of {length:,} bytes"
                    break
                kind, payload = msgspec.msgpack.decode(self._exactly(length))
                self._messages.put((kind, payload))
        except (OSError, EOFError):
            pass
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            reason = f"it sent what is no message: {error}"
        if not self._is_closing:
            self._messages.put((LOST, reason))
            if self._on_lost is not None:
                self._on_lost(reason)

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(min(count - len(parts), 1 << 20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)
