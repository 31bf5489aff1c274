"""The child's end: back-pressure, routing, what it imports, and that another interpreter can run it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from model_cards.card import ModelCard
from runner.engines import connectors, frames
from runner.engines.base import EngineSpec
from runner.engines.connectors import Spawner
from runner.engines.frames import FrameReader
from runner.engines.peers import Peer
from runner.engines.process import ProcessEngine
from runner.types import TextDelta, TokenDelta, TokenRequest

ROOT = Path(__file__).parents[3]


class _Router:
    """Counts what a peer reports."""

    def __init__(self) -> None:
        self.num_joined = 0
        self.num_left = 0

    def join(self, peer: Peer) -> None:
        self.num_joined += 1

    def leave(self, peer: Peer) -> None:
        self.num_left += 1

    def handle(self, peer: Peer, kind: int, payload: object) -> None:
        raise frames.ProtocolError("not expected here")


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


def connected() -> tuple[Peer, _Transport]:
    peer = Peer(_Router(), is_owner=False)
    transport = _Transport()
    peer.connection_made(transport)
    return peer, transport


def messages(transport: _Transport) -> list[tuple[int, object]]:
    reader = FrameReader()
    return [message for data in transport.written for message in reader.feed(data)]


def test_one_step_is_one_write() -> None:
    peer, transport = connected()
    peer.send_tokens([(key, TokenDelta([key])) for key in range(64)])
    assert len(transport.written) == 1


def test_deltas_for_a_slow_reader_are_merged_and_lose_nothing() -> None:
    peer, transport = connected()
    peer.pause_writing()
    for at in range(1000):
        peer.send_tokens([(1, TokenDelta([at])), (2, TokenDelta([-at]))])
    peer.send_tokens([(1, TokenDelta([], "stop"))])
    peer.send_idle(frames.HEARTBEAT, frames.Heartbeat({}))
    assert transport.written == []
    peer.resume_writing()
    assert messages(transport) == [
        (
            frames.DELTAS,
            [
                (1, TokenDelta(list(range(1000)), "stop")),
                (2, TokenDelta([-at for at in range(1000)])),
            ],
        )
    ]


def test_an_error_comes_after_the_deltas_that_waited() -> None:
    peer, transport = connected()
    peer.pause_writing()
    peer.send_tokens([(1, TokenDelta([5]))])
    peer.send_texts([(2, TextDelta(text="a"))])
    peer.send_texts([(2, TextDelta(text="b"))])
    peer.send(frames.ERROR, frames.ErrorReply(1, "EngineFailed", "no"))
    kinds = [kind for kind, _ in messages(transport)]
    assert kinds == [frames.DELTAS, frames.TEXTS, frames.ERROR]
    assert messages(transport)[1] == (frames.TEXTS, [(2, TextDelta(text="ab"))])


def test_what_waits_for_a_cancelled_request_is_dropped() -> None:
    peer, transport = connected()
    peer.pause_writing()
    peer.send_tokens([(1, TokenDelta([5])), (2, TokenDelta([6]))])
    peer.forget(1)
    peer.resume_writing()
    assert messages(transport) == [(frames.DELTAS, [(2, TokenDelta([6]))])]


async def over_socketpair(send_buffer: int | None = None) -> tuple[Peer, socket.socket]:
    """A peer on a real transport, and the launcher's end."""
    ours, theirs = socket.socketpair()
    if send_buffer is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    peer = Peer(_Router(), is_owner=False)
    await asyncio.get_running_loop().create_unix_connection(lambda: peer, sock=ours)
    theirs.setblocking(False)
    return peer, theirs


async def received(theirs: socket.socket, num_tokens: int) -> list[tuple[int, object]]:
    """Every message until request 1 has so many tokens."""
    reader = FrameReader()
    found: list[tuple[int, object]] = []
    while sum(map(len, map(tokens_of, found))) < num_tokens:
        found += reader.feed(await asyncio.get_running_loop().sock_recv(theirs, 65536))
    return found


def tokens_of(message: tuple[int, object]) -> list[int]:
    kind, payload = message
    if kind != frames.DELTAS:
        return []
    assert isinstance(payload, list)
    return [token for key, delta in payload if key == 1 for token in delta.token_ids]


async def test_a_step_leaves_from_the_engine_thread() -> None:
    """No turn of the socket thread's loop lies between the step and the launcher."""
    peer, theirs = await over_socketpair()
    assert await asyncio.to_thread(peer.try_send_tokens, [(1, TokenDelta([5]))])
    reader = FrameReader()
    assert list(reader.feed(theirs.recv(65536))) == [(frames.DELTAS, [(1, TokenDelta([5]))])]
    peer.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert theirs.recv(1) == b""  # the second handle of the socket is closed too
    theirs.close()


async def test_short_steps_are_told_together_but_first_and_last_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runner.engines.peers.PACE_S", 3600.0)
    peer, theirs = await over_socketpair()
    reader = FrameReader()

    def told(*batch: tuple[int, TokenDelta]) -> list[tuple[int, object]]:
        assert peer.try_send_tokens(list(batch))
        try:
            return list(reader.feed(theirs.recv(65536)))
        except BlockingIOError:
            return []

    first, other = TokenDelta([5], cached_tokens=0), TokenDelta([6], cached_tokens=3)
    assert told((1, first)) == [(frames.DELTAS, [(1, first)])]
    assert told((1, TokenDelta([7]))) == told((1, TokenDelta([8]))) == []
    assert told((2, other)) == [(frames.DELTAS, [(1, TokenDelta([7, 8])), (2, other)])]
    assert told((1, TokenDelta([9])), (2, TokenDelta([10]))) == []
    last = told((1, TokenDelta([11], "length")))
    assert last == [(frames.DELTAS, [(1, TokenDelta([9, 11], "length")), (2, TokenDelta([10]))])]
    peer.close()
    theirs.close()


async def test_what_waits_for_a_step_that_does_not_come_is_told() -> None:
    peer, theirs = await over_socketpair()
    assert peer.try_send_tokens([(1, TokenDelta([5]))]) and peer.try_send_tokens([(1, TokenDelta([6]))])
    await asyncio.sleep(peer._pause_until - time.monotonic() + 0.001)
    peer.send_kept()
    messages = await received(theirs, 2)
    assert [token for message in messages for token in tokens_of(message)] == [5, 6]
    peer.close()
    theirs.close()


async def test_both_threads_write_to_a_slow_reader_and_nothing_is_lost_or_cut() -> None:
    """Steps of all sizes from the engine thread, among the socket thread's own frames, through a small buffer."""
    peer, theirs = await over_socketpair(send_buffer=4096)
    loop = asyncio.get_running_loop()
    num_steps = 3000

    def steps() -> int:
        at = num_direct = 0
        for step in range(num_steps):
            size = 1 + step % 97
            finish = "length" if step == num_steps - 1 else None
            batch = [(1, TokenDelta(list(range(at, at + size)), finish)), (2, TokenDelta([step]))]
            at += size
            if peer.try_send_tokens(batch):
                num_direct += 1
            else:
                loop.call_soon_threadsafe(peer.send_queued, batch)
        return num_direct

    async def beats() -> None:
        while True:
            peer.send_idle(frames.HEARTBEAT, frames.Heartbeat({"num_running": 1.0}))
            await asyncio.sleep(0)

    total = sum(1 + step % 97 for step in range(num_steps))
    beating = asyncio.create_task(beats())
    num_direct, messages = await asyncio.gather(asyncio.to_thread(steps), received(theirs, total))
    beating.cancel()
    assert [token for message in messages for token in tokens_of(message)] == list(range(total))
    assert 0 < num_direct < num_steps
    peer.close()
    theirs.close()


async def test_an_error_never_overtakes_the_deltas_of_its_request() -> None:
    peer, theirs = await over_socketpair(send_buffer=4096)
    loop = asyncio.get_running_loop()
    batch = [(1, TokenDelta(list(range(50_000))))]  # more than the socket takes at once
    assert not await asyncio.to_thread(peer.try_send_tokens, batch)
    loop.call_soon(peer.send_queued, batch)
    later = [(1, TokenDelta([-1]))]
    if not await asyncio.to_thread(peer.try_send_tokens, later):  # else kept: it may not be in the middle of a frame
        loop.call_soon(peer.send_queued, later)
    loop.call_soon(peer.send, frames.ERROR, frames.ErrorReply(1, "EngineFailed", "no"))
    reader = FrameReader()
    found: list[tuple[int, object]] = []
    while not found or found[-1][0] != frames.ERROR:
        found += reader.feed(await loop.sock_recv(theirs, 65536))
    assert [token for message in found for token in tokens_of(message)] == [*range(50_000), -1]
    peer.close()
    theirs.close()


def test_a_peer_that_sends_garbage_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    peer, transport = connected()
    peer.data_received(b"GET / HTTP/1.1\r\n\r\n")
    assert transport.is_aborted
    assert "dropping a connection" in capsys.readouterr().err


def test_a_child_imports_little() -> None:
    """It may run in an engine's own environment: msgspec, and nothing of the launcher's."""
    code = "import sys, runner.engines.child; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert "msgspec" in roots
    assert not roots & {"platformdirs", "psutil", "aiohttp", "typer", "rich", "numpy", "tokenizers", "uvloop", "jinja2"}


async def test_another_interpreter_sees_our_packages_only(tmp_path: Path) -> None:
    """A foreign environment gets `runner` and `model_cards` by links, not our site-packages."""
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    spec = EngineSpec(name="counter", card=ModelCard(name="m", source="m"))
    child = "tests.runner.engines.fault_engines:Counter"
    msgspec_home = Path(msgspec.__file__).parent.parent  # a bare interpreter by its name; a real one brings msgspec
    engine = ProcessEngine(spec, child, python=str(other), env={"PYTHONPATH": f"{ROOT}{os.pathsep}{msgspec_home}"})
    try:
        await engine.start()
        assert engine.socket_path is not None
        links = {path.name for path in Path(engine.socket_path).parent.iterdir()}
        assert links == {"engine.sock", "runner", "model_cards"}
        async for delta in engine.generate(TokenRequest(id="r", token_ids=[1], max_tokens=1)):
            assert delta.token_ids == [1]
    finally:
        await engine.close()


async def test_a_long_temporary_folder_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr(connectors.tempfile, "tempdir", str(deep))
    spawner = Spawner(EngineSpec(name="x", card=ModelCard(name="m", source="m")), "a:b", "step", sys.executable, None)
    assert len(str(spawner._private_folder())) < 60
    spawner.tidy()
