"""The three ZeroMQ sockets of one EngineCore: handshake, input, output. We bind, it connects. Knows bytes only."""

from __future__ import annotations

from pathlib import Path

import zmq


class CoreSockets:
    """Bound below `folder`, which is private to us; `number` tells one start from the next."""

    def __init__(self, folder: Path, number: int) -> None:
        self._context = zmq.Context()
        self.handshake_address = f"ipc://{folder}/h{number}"
        self.input_address = f"ipc://{folder}/i{number}"
        self.output_address = f"ipc://{folder}/o{number}"
        self.identity = b"\0\0"
        self.is_closed = False
        try:
            self._handshake = self._bind(zmq.ROUTER, self.handshake_address)
            self._input = self._bind(zmq.ROUTER, self.input_address)
            self._output = self._bind(zmq.PULL, self.output_address)
            self._input.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a dead peer is an error, not silence
        except BaseException:
            self.close()
            raise
        self.output_fd = int(self._output.getsockopt(zmq.FD))

    def _bind(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(address)
        return socket

    def poll_handshake(self) -> list[bytes] | None:
        """A message of the handshake, [identity, body], if one waits."""
        return _receive(self._handshake)

    def answer_handshake(self, identity: bytes, body: bytes) -> None:
        """To EngineCore's HELLO."""
        self.identity = identity
        self._handshake.send_multipart([identity, body], zmq.NOBLOCK)

    def poll_input(self) -> list[bytes] | None:
        """EngineCore's registration, [identity, body], if it waits."""
        return _receive(self._input)

    def receive(self) -> list[bytes] | None:
        """One message of the output socket, if one waits."""
        return _receive(self._output)

    def send(self, kind: bytes, body: bytes) -> None:
        """To EngineCore. Raises zmq.ZMQError when it is gone."""
        self._input.send_multipart([self.identity, kind, body], zmq.NOBLOCK)

    def close(self) -> None:
        """Safe twice."""
        if not self.is_closed:
            self.is_closed = True
            self._context.destroy(linger=0)


def _receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
