"""zmtp.Peer and CoreSockets against libzmq itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from runner.engines.vllm.sockets import CoreGone, CoreSockets
from runner.engines.vllm.zmtp import Peer

Connect = Callable[[int, str], "zmq.Socket[bytes]"]


@pytest.fixture
def connected() -> Iterator[Connect]:
    """Sockets of libzmq that send heartbeats."""
    context = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = []

    def connect(kind: int, address: str) -> zmq.Socket[bytes]:
        made = context.socket(kind)
        sockets.append(made)
        made.setsockopt(zmq.IDENTITY, b"\0\0")
        made.setsockopt(zmq.HEARTBEAT_IVL, 50)
        made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1_000)
        made.connect(address)
        return made

    yield connect
    for one in sockets:
        one.close(linger=0)
    context.term()


async def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    assert await asyncio.to_thread(socket.poll, 5_000)
    return socket.recv_multipart()


async def until(is_true: Any) -> None:
    async with asyncio.timeout(5):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("is_remote", [False, True])
async def test_handshake_input_and_output(connected: Connect, tmp_path: Path, is_remote: bool) -> None:
    sockets = await CoreSockets.listen(tmp_path, 1, is_remote_handshake=is_remote)
    with pytest.raises(CoreGone):
        sockets.send(b"\0", b"too early")
    hands = connected(zmq.DEALER, sockets.handshake_address)
    hands.send(b"hello")
    await until(lambda: sockets._hands)
    assert sockets.poll_handshake() == [b"\0\0", b"hello"] and sockets.poll_handshake() is None
    sockets.answer_handshake(b"addresses")
    assert await receive(hands) == [b"addresses"]

    core = connected(zmq.DEALER, f"ipc://{tmp_path}/i1-0")
    await until(lambda: sockets.is_reached)
    assert sockets.poll_input() is None
    core.send(b"")
    await until(lambda: sockets._registrations)
    assert sockets.poll_input() == [b"\0\0", b""]
    sockets.send(b"\1", b"x" * 70_000)
    assert await receive(core) == [b"\1", b"x" * 70_000]

    ends: list[bool] = []
    steps: list[list[bytes]] = []
    output = connected(zmq.PUSH, f"ipc://{tmp_path}/o1-0")
    output.send(b"before anybody watched")
    await until(lambda: sockets._early)
    sockets.watch(steps.append, lambda: ends.append(True))
    sent = [[bytes(random.Random(at).randbytes(size)) for size in (1, 255, 256, at * 997)] for at in range(1, 200)]
    for message in sent:
        output.send_multipart(message)
    await until(lambda: len(steps) == 200)
    assert steps == [[b"before anybody watched"], *sent]
    await asyncio.sleep(1.5)  # a peer that answers no heartbeat of libzmq does not live so long
    assert sockets.is_reached and not ends
    core.close(linger=0)
    await until(lambda: ends)
    with pytest.raises(CoreGone):
        sockets.send(b"\0", b"too late")
    sockets.close()
    sockets.close()


async def test_one_that_comes_again_is_reached_without_a_word(connected: Connect, tmp_path: Path) -> None:
    """As EngineCore's socket does when a client of several has left and another takes its place."""
    core = connected(zmq.DEALER, f"ipc://{tmp_path}/i1-3")
    for _ in range(2):
        sockets = await CoreSockets.listen(tmp_path, 1, 3)
        await until(lambda found=sockets: found.is_reached)
        sockets.send(b"\1", b"one")
        assert await receive(core) == [b"\1", b"one"]
        sockets.close()
        await asyncio.sleep(0.05)


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_aborted = False

    def write(self, data: Any) -> None:
        self.written += data

    def abort(self) -> None:
        self.is_aborted = True


_GREETING = (b"\xff" + bytes(8) + b"\x7f\3\1NULL").ljust(64, b"\0")
_READY = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"


def fed(data: bytes, size: int) -> tuple[Wire, list[list[bytes]]]:
    """A peer that gets `data` in pieces of `size`."""
    wire, messages = Wire(), []
    peer = Peer(b"PULL", lambda peer: None, lambda peer, message: messages.append(message), lambda peer: None)
    peer.connection_made(wire)
    for at in range(0, len(data), size):
        if not wire.is_aborted:
            peer.data_received(data[at : at + size])
    return wire, messages


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 1000])
def test_messages_in_pieces(size: int) -> None:
    data = _GREETING + _READY + b"\x01\x01a" + b"\x02" + (300).to_bytes(8, "big") + b"b" * 300 + b"\x00\x00"
    wire, messages = fed(data, size)
    assert messages == [[b"a", b"b" * 300], [b""]] and not wire.is_aborted
    assert wire.written.startswith(_GREETING[:12]) and b"Socket-Type\0\0\0\4PULL" in wire.written


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + b"x" * 64,
        _GREETING.replace(b"NULL", b"PLAIN"),
        _GREETING[:10] + b"\1" + _GREETING[11:],
        _GREETING + b"\x04\x00",
        _GREETING + b"\x04\x0d\x05READY\x01a\xff\xff\xff\xffb",
        _GREETING + _READY + b"\x02" + b"\xff" * 8,
        _GREETING + _READY + b"\x04\x08\x05ERROR\x01x",
    ],
)
def test_what_is_no_zmtp_ends_the_connection(data: bytes) -> None:
    wire, messages = fed(data, 1_000)
    assert wire.is_aborted and not messages


def test_noise_never_raises() -> None:
    good = _GREETING + _READY + b"\x01\x01a\x00\x02bc" * 20
    for seed in range(20_000):
        dice = random.Random(seed)
        data = bytearray(good)
        for _ in range(dice.randrange(1, 8)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        fed(bytes(data), dice.choice((1 << 20, 97)))
