"""The ZeroMQ sockets of one EngineCore: handshake, input, output. We listen, it connects. Knows bytes only."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path

from runner.engines.vllm.zmtp import Peer

_LOOPBACK = "127.0.0.1"


class CoreGone(ConnectionError):
    """EngineCore is not connected."""


class CoreSockets:
    """Made by `listen`. An EngineCore speaks to several clients, each with an input and an output of its own."""

    def __init__(self) -> None:
        self.handshake_address = ""
        self.is_closed = False
        self._servers: list[asyncio.Server] = []
        self._peers: set[Peer] = set()
        self._shaker: Peer | None = None
        self._hands: deque[list[bytes]] = deque()
        self._core: Peer | None = None
        self._registrations: deque[list[bytes]] = deque()
        self._early: list[list[bytes]] = []
        self._on_step: Callable[[list[bytes]], None] = self._early.append
        self._on_end: Callable[[], None] = lambda: None

    @classmethod
    async def listen(
        cls, folder: Path, number: int, client: int = 0, *, is_remote_handshake: bool = False
    ) -> CoreSockets:
        """Below `folder`, which is private to us; `number` tells one start from the next. Raises OSError.

        Client 0 owns EngineCore and shakes hands, at a socket file or (`is_remote_handshake`) a TCP port of loopback.
        """
        self = cls()
        inputs, outputs = (Path(address.removeprefix(_IPC)) for address in data_addresses(folder, number, client))
        try:
            if client == 0:
                await self._listen_for_hands(None if is_remote_handshake else folder / f"h{number}")
            await self._listen_at(inputs, lambda: Peer(b"ROUTER", self._meet_core, self._register, self._lose))
            await self._listen_at(outputs, lambda: Peer(b"PULL", self._peers.add, self._take_step, self._peers.discard))
        except BaseException:
            self.close()
            raise
        return self

    async def _listen_for_hands(self, path: Path | None) -> None:
        def make() -> Peer:
            return Peer(b"ROUTER", self._meet, self._shake, self._lose)

        if path is not None:
            await self._listen_at(path, make)
            self.handshake_address = f"{_IPC}{path}"
            return
        server = await asyncio.get_running_loop().create_server(make, _LOOPBACK, 0)
        self._servers.append(server)
        self.handshake_address = f"tcp://{_LOOPBACK}:{server.sockets[0].getsockname()[1]}"

    async def _listen_at(self, path: Path, make: Callable[[], Peer]) -> None:
        self._servers.append(await asyncio.get_running_loop().create_unix_server(make, str(path)))

    # what peers say

    def _meet(self, peer: Peer) -> None:
        self._peers.add(peer)
        self._shaker = peer

    def _shake(self, peer: Peer, message: list[bytes]) -> None:
        self._hands.append([peer.identity, *message])

    def _meet_core(self, peer: Peer) -> None:
        self._peers.add(peer)
        self._core = peer

    def _register(self, peer: Peer, message: list[bytes]) -> None:
        self._registrations.append([peer.identity, *message])

    def _lose(self, peer: Peer) -> None:
        self._peers.discard(peer)
        if peer is self._shaker:
            self._shaker = None
        elif peer is self._core:
            self._core = None
            self._on_end()

    def _take_step(self, peer: Peer, message: list[bytes]) -> None:
        self._on_step(message)

    # for the launcher

    def poll_handshake(self) -> list[bytes] | None:
        """A message of the handshake, [identity, body], if one waits."""
        return self._hands.popleft() if self._hands else None

    def answer_handshake(self, body: bytes) -> None:
        """To EngineCore's HELLO. Raises CoreGone."""
        if self._shaker is None:
            raise CoreGone("it left before it was answered")
        self._shaker.send(body)

    def poll_input(self) -> list[bytes] | None:
        """EngineCore's registration, [identity, body], if it waits."""
        return self._registrations.popleft() if self._registrations else None

    @property
    def is_reached(self) -> bool:
        """Whether EngineCore has found our input."""
        return self._core is not None

    def watch(self, on_step: Callable[[list[bytes]], None], on_end: Callable[[], None]) -> None:
        """Every message of the output from now on, and those that waited; and the end of EngineCore's connection."""
        self._on_step, self._on_end = on_step, on_end
        for message in self._early:
            on_step(message)
        self._early.clear()

    def send(self, kind: bytes, body: bytes) -> None:
        """To EngineCore. Raises CoreGone."""
        if self._core is None:
            raise CoreGone("its connection has ended")
        self._core.send(kind, body)

    def close(self) -> None:
        """Safe twice."""
        if not self.is_closed:
            self.is_closed = True
            self._on_end = lambda: None
            self._on_step = lambda message: None
            for server in self._servers:
                server.close()
            for peer in list(self._peers):
                peer.close()


_IPC = "ipc://"


def data_addresses(folder: Path, number: int, client: int) -> tuple[str, str]:
    """Input and output of one client."""
    return f"{_IPC}{folder}/i{number}-{client}", f"{_IPC}{folder}/o{number}-{client}"
