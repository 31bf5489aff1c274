"""The ZeroMQ sockets of one EngineCore: handshake, input, output. We bind, it connects. Knows bytes only."""

from __future__ import annotations

from pathlib import Path

import zmq


class CoreSockets:
    """Bound below `folder`, which is private to us; `number` tells one start from the next.

    An EngineCore speaks to several clients, each with an input and an output of its own; client 0 owns it and shakes
    hands, at `handshake` or, by default, at a socket file.
    """

    def __init__(self, folder: Path, number: int, client: int = 0, handshake: str = "") -> None:
        self._context = zmq.Context()
        self.input_address, self.output_address = data_addresses(folder, number, client)
        self.handshake_address = ""
        self.identity = b"\0\0"
        self.is_closed = False
        try:
            if client == 0:
                self._handshake = self._bind(zmq.ROUTER, handshake or f"ipc://{folder}/h{number}")
                self.handshake_address = self._handshake.getsockopt_string(zmq.LAST_ENDPOINT)
            self._input = self._bind(zmq.ROUTER, self.input_address)
            self._output = self._bind(zmq.PULL, self.output_address)
            self._input.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a dead peer is an error, not silence
            self._ends = self._input.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        except BaseException:
            self.close()
            raise
        self.output_fd = int(self._output.getsockopt(zmq.FD))
        self.ends_fd = int(self._ends.getsockopt(zmq.FD))

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

    def has_ended(self) -> bool:
        """Whether EngineCore's end of the input was closed since the last call."""
        return not self.is_closed and _receive(self._ends) is not None

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


def data_addresses(folder: Path, number: int, client: int) -> tuple[str, str]:
    """Input and output of one client."""
    return f"ipc://{folder}/i{number}-{client}", f"ipc://{folder}/o{number}-{client}"


def _receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
