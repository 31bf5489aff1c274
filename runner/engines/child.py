"""`python -m runner.engines.child`: the process that hosts one engine. Owns its manners and the socket thread.

Two threads: the main thread belongs to the engine (hosts.py); a socket thread speaks frames.py to the launcher's
processes and answers for the engine while it computes. The owner's connection is inherited (`--fd`); other processes of
the same launcher (`--http-workers`) connect to `--listen`. When the owner's connection ends, so does this process.
Runs on Python 3.10 with msgspec and the engine's own packages.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from runner.engines import frames, guard
from runner.engines.async_host import AsyncHost
from runner.engines.base import StepOutput
from runner.engines.block_log import BlockEvent
from runner.engines.failures import output_to_reply, to_reply
from runner.engines.frames import ErrorReply, Failed, Heartbeat, Progress, ProtocolError, Start
from runner.engines.hosts import Host, StepHost
from runner.engines.peers import Peer
from runner.errors import EngineBusy, EngineFailed
from runner.types import ChatRequest, EmbedRequest, EmbedResult, EngineInfo, TextDelta, TokenDelta, TokenRequest

HEARTBEAT_S = 1.0
_KEPT_S = 0.02
"""How long a delta waits at most for the next step, to go out with it."""
_FLUSH_BOUND_S = 2.0
_SWITCH_INTERVAL_S = 0.0005
"""The socket thread gets the interpreter within half a millisecond while the engine runs Python (default: 5 ms)."""


class Server:
    """The socket thread: routes requests to the host and results to the connection they belong to. Implements Sink."""

    def __init__(self, owner: socket.socket, listen: str, parent_pid: int) -> None:
        self._owner = owner
        self._listen = listen
        self._parent_pid = parent_pid
        self._loop = asyncio.new_event_loop()
        self._peers: set[Peer] = set()
        self._routes: dict[str, tuple[Peer, int]] = {}
        self._num_requests = 0
        self._start: Start | None = None
        self._started = threading.Event()
        self._is_stopping = False
        self._flushed = threading.Event()
        self._host: Host | None = None
        self._info: EngineInfo | None = None
        self._heartbeats: asyncio.Task[None] | None = None
        self._is_ticking = False
        self._thread = threading.Thread(target=self._run, name="sockets", daemon=True)

    # main thread

    def wait_start(self) -> Start:
        """Open the sockets and wait for the first frame."""
        self._thread.start()
        self._started.wait()
        assert self._start is not None
        return self._start

    def serve(self, host: Host) -> None:
        """From now on commands go to `host`."""
        self._host = host

    def stop(self) -> None:
        """Write out what was sent, then return; bounded."""

        def finish() -> None:
            self._is_stopping = True
            if self._heartbeats is not None:
                self._heartbeats.cancel()
            for peer in self._peers:
                peer.close()

        self._soon(finish)
        self._flushed.wait(_FLUSH_BOUND_S)

    # Sink: any thread

    def progress(self, phase: str, share: float | None = None) -> None:
        """See hosts.Sink."""
        self._soon(self._broadcast, frames.PROGRESS, Progress(phase, share))

    def ready(self, info: EngineInfo) -> None:
        """See hosts.Sink."""
        self._soon(self._set_ready, info)

    def failed(self, failure: Failed) -> None:
        """See hosts.Sink."""
        self._soon(self._broadcast, frames.FAILED, failure)

    def outputs(self, outputs: list[StepOutput]) -> None:
        """See hosts.Sink. The hot call: into the socket without waking the socket thread, where that is possible.

        It shares `_routes` and `ids` with that thread: single operations on dicts only, each of which is atomic.
        """
        batches: dict[Peer, list[tuple[int, TokenDelta]]] = {}
        failed: list[StepOutput] = []
        for output in outputs:
            route = self._routes.get(output.id)
            if route is None:
                continue
            delta = output.delta
            if delta is not None:
                peer, key = route
                if peer in batches:
                    batches[peer].append((key, delta))
                else:
                    batches[peer] = [(key, delta)]
                if delta.finish is not None:
                    self._end(output.id)
            if output.error is not None:
                failed.append(output)
        for peer, batch in batches.items():
            if not peer.try_send_tokens(batch):
                self._soon(peer.send_queued, batch)
        for output in failed:
            self._soon(self._send_error, output.id, partial(output_to_reply, output))

    def texts(self, deltas: list[tuple[str, TextDelta]]) -> None:
        """See hosts.Sink."""
        self._soon(self._send_texts, deltas)

    def error(self, request_id: str, error: BaseException) -> None:
        """See hosts.Sink."""
        self._soon(self._send_error, request_id, lambda key: to_reply(key, error))

    def embedded(self, request_id: str, result: EmbedResult) -> None:
        """See hosts.Sink."""
        self._soon(self._send_embedded, request_id, result)

    def blocks(self, events: list[BlockEvent]) -> None:
        """See hosts.Sink."""
        self._soon(self._send_blocks, events)

    def error_all(self, error: BaseException) -> None:
        """See hosts.Sink."""

        def send() -> None:
            self._is_stopping = True
            self._routes.clear()
            self._broadcast(frames.FAILED, Failed(str(error)))  # one frame: no request slips in between

        self._soon(send)

    def _soon(self, call: Callable[..., None], *args: Any) -> None:
        self._loop.call_soon_threadsafe(call, *args)

    # socket thread

    def _run(self) -> None:
        """The thread's body. An error here would leave a deaf process: end it."""
        try:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._open())
            self._loop.run_forever()
        except BaseException:
            traceback.print_exc()
            os._exit(70)

    async def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            Path(self._listen).unlink()
        await self._loop.create_unix_server(lambda: Peer(self, is_owner=False), self._listen)
        await self._loop.create_unix_connection(lambda: Peer(self, is_owner=True), sock=self._owner)
        self._heartbeats = self._loop.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if os.getppid() != self._parent_pid:
                os._exit(71)
            if self._host is not None and self._info is not None:
                beat = Heartbeat(self._numbers(self._host.stats()), self._host.busy_s())
                for peer in self._peers:
                    peer.send_idle(frames.HEARTBEAT, beat)

    def _numbers(self, stats: dict[str, float]) -> dict[str, float]:
        return {**stats, "num_requests": float(len(self._routes))}

    def join(self, peer: Peer) -> None:
        """A connection is there."""
        self._peers.add(peer)
        if self._info is not None:
            peer.send(frames.READY, self._info)

    def leave(self, peer: Peer) -> None:
        """A connection is gone; its requests are cancelled. Without its owner this process ends."""
        self._peers.discard(peer)
        if self._is_stopping:
            if not self._peers:
                self._flushed.set()
            return
        if peer.is_owner:
            os._exit(0)
        for request_id in list(peer.ids.values()):
            self._drop(request_id)

    def handle(self, peer: Peer, kind: int, payload: Any) -> None:
        """Run one message."""
        if kind == frames.GENERATE or kind == frames.CHAT:
            self._submit(peer, *payload)
        elif kind == frames.CANCEL:
            request_id = peer.ids.get(payload)
            if request_id is not None:
                self._drop(request_id)
        elif kind == frames.EMBED:
            self._embed(peer, *payload)
        elif kind == frames.STATS:
            self._stats(peer, payload)
        elif kind == frames.START and peer.is_owner and self._start is None:
            self._start = payload
            self._started.set()
        elif kind == frames.WATCH_BLOCKS and peer.is_owner:
            if isinstance(self._host, StepHost):
                self._host.watch_blocks()
        elif kind == frames.CLOSE and peer.is_owner and self._host is not None:
            self._host.close()
        else:
            raise ProtocolError(f"a frame of kind {kind} is not expected here")

    def _submit(self, peer: Peer, key: int, request: TokenRequest | ChatRequest) -> None:
        busy = self._refusal()
        if busy is not None:
            peer.send(frames.ERROR, to_reply(key, busy))
            return
        assert self._host is not None
        request_id = self._route(peer, key, request.id)
        self._host.submit(request_id, msgspec.structs.replace(request, id=request_id))

    def _refusal(self) -> EngineBusy | EngineFailed | None:
        """Why no more requests can be taken now."""
        if self._info is None or self._start is None or self._host is None:
            return EngineFailed("the engine is still starting")
        max_queue = self._start.spec.options.max_queue
        if max_queue is None or len(self._routes) < self._info.max_running + max_queue:
            return None
        return EngineBusy(
            f"the engine is full: {self._info.max_running} requests run and {max_queue} wait (--max-queue); "
            f"try again in a second"
        )

    def _route(self, peer: Peer, key: int, name: str) -> str:
        """A request id of our own: two frontends (or one client) may use the same id twice."""
        self._num_requests += 1
        request_id = f"{name}#{self._num_requests}"
        peer.ids[key] = request_id
        self._routes[request_id] = (peer, key)
        if not self._is_ticking:
            self._is_ticking = True
            self._loop.call_later(_KEPT_S, self._tick)
        return request_id

    def _tick(self) -> None:
        """While there are requests."""
        for peer in self._peers:
            peer.send_kept()
        self._is_ticking = bool(self._routes)
        if self._is_ticking:
            self._loop.call_later(_KEPT_S, self._tick)

    def _embed(self, peer: Peer, key: int, request: EmbedRequest) -> None:
        if self._host is None or self._info is None:
            peer.send(frames.ERROR, to_reply(key, EngineFailed("the engine is still starting")))
            return
        self._host.embed(self._route(peer, key, request.id), request)

    def _stats(self, peer: Peer, key: int) -> None:
        if self._host is None or self._info is None:
            peer.send(frames.STATS_REPLY, (key, {}))
            return

        def reply(stats: dict[str, float]) -> None:
            self._soon(lambda: peer.send(frames.STATS_REPLY, (key, self._numbers(stats))))

        self._host.ask_stats(reply)

    def _drop(self, request_id: str) -> None:
        """Cancel."""
        route = self._end(request_id)
        if route is not None:
            peer, key = route
            peer.forget(key)
        assert self._host is not None
        self._host.cancel(request_id)

    def _end(self, request_id: str) -> tuple[Peer, int] | None:
        route = self._routes.pop(request_id, None)
        if route is not None:
            peer, key = route
            peer.ids.pop(key, None)
        return route

    def _set_ready(self, info: EngineInfo) -> None:
        self._info = info
        self._broadcast(frames.READY, info)

    def _broadcast(self, kind: int, payload: Any) -> None:
        for peer in self._peers:
            peer.send(kind, payload)

    def _send_texts(self, deltas: list[tuple[str, TextDelta]]) -> None:
        batches: dict[Peer, list[tuple[int, TextDelta]]] = {}
        for request_id, delta in deltas:
            route = self._routes.get(request_id)
            if route is not None:
                batches.setdefault(route[0], []).append((route[1], delta))
                if delta.usage is not None:
                    self._end(request_id)
        for peer, batch in batches.items():
            peer.send_texts(batch)

    def _send_blocks(self, events: list[BlockEvent]) -> None:
        for peer in self._peers:
            if peer.is_owner:
                peer.send(frames.BLOCKS, events)

    def _send_error(self, request_id: str, make_reply: Callable[[int], ErrorReply]) -> None:
        route = self._end(request_id)
        if route is not None:
            peer, key = route
            peer.send(frames.ERROR, make_reply(key))

    def _send_embedded(self, request_id: str, result: EmbedResult) -> None:
        route = self._end(request_id)
        if route is not None:
            peer, key = route
            peer.send(frames.EMBEDDED, (key, result))


def main(argv: list[str] | None = None) -> None:
    """Host the engine that the owner names; never returns."""
    parser = argparse.ArgumentParser(prog="runner.engines.child")
    parser.add_argument("--fd", type=int, required=True, help="the owner's connection")
    parser.add_argument("--listen", required=True, help="path of the socket for other processes of the launcher")
    parser.add_argument("--parent", type=int, required=True, help="process id of the launcher")
    args = parser.parse_args(argv)
    os.set_inheritable(args.fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard.watch(args.parent, Path(args.listen))
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    server = Server(socket.socket(fileno=args.fd), args.listen, args.parent)
    start = server.wait_start()
    host: Host = StepHost(start, server) if start.shape == "step" else AsyncHost(start, server)
    server.serve(host)
    code = host.run()
    server.stop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no atexit: a library's teardown must not keep the process


if __name__ == "__main__":
    main()
