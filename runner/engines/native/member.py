"""A rank that is not 0: joins the leader, does what it says, and ends when it is gone.

`python -m runner.engines.native.member RANK HOST PORT` is one in a process of its own, whose EngineSpec is stdin; the
other kind is in the engine process of a follower node (follower.py).
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

import msgspec

from runner.engines.base import EngineSpec
from runner.engines.failures import describe
from runner.engines.native.channel import LOST, Channel, unpack_plan
from runner.engines.native.ranks import TOKEN_VARIABLE
from runner.engines.native.worker import Worker, WorkerConfig
from runner.errors import EngineFailed, EngineStartFailed

_RETRY_S = 0.1


class Member:
    """One rank, driven by the leader's messages: load, cache, step, close."""

    def __init__(self, spec: EngineSpec, rank: int, address: tuple[str, int], token: str) -> None:
        self._spec, self._rank, self._address, self._token = spec, rank, address, token
        self._channel: Channel | None = None
        self._worker: Worker | None = None
        self.is_ready = False

    def join(self, timeout_s: float) -> None:
        """Connect and say who this is; the leader may start later. Raises EngineStartFailed."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                sock = socket.create_connection(self._address, timeout=5.0)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    host, port = self._address
                    raise EngineStartFailed(
                        f"node 0 does not answer at {host}:{port} ({error.strerror or error}); is it started, and is "
                        "--leader-addr right?"
                    ) from error
                time.sleep(_RETRY_S)
        self._channel = Channel(sock)
        self._channel.send("hello", {"rank": self._rank, "token": self._token})

    def handle(self, timeout_s: float | None) -> bool:
        """Do what the next message says; False when it is time to end. Raises EngineFailed when the leader is gone."""
        assert self._channel is not None
        message = self._channel.receive(timeout_s)
        if message is None:
            return True
        kind, payload = message
        if kind in (LOST, "refused"):
            raise EngineFailed(f"node 0 (rank 0): {payload}")
        if kind == "close":
            return False
        try:
            self._do(kind, payload)
        except Exception as error:
            self._channel.send("failed", describe(error))
            raise
        return True

    def _do(self, kind: str, payload: Any) -> None:
        assert self._channel is not None
        if kind == "step":
            assert self._worker is not None
            self._worker.execute(unpack_plan(payload))
        elif kind == "load":
            config = msgspec.convert(payload, WorkerConfig)
            self._worker = Worker(msgspec.structs.replace(config, rank=self._rank), self._spec.card)
            self._worker.load()
            self._channel.send("loaded", self._worker.measure())
        elif kind == "cache":
            assert self._worker is not None
            self._worker.make_cache(payload)
            self._channel.send("cached")
        elif kind == "ready":
            self._channel.watch(self._leader_gone)
            self.is_ready = True

    def _leader_gone(self, reason: str) -> None:
        """In the reading thread: the main one may wait for a peer that will never answer."""
        sys.stderr.write(f"native: rank 0 is gone, which ends rank {self._rank}: {reason}\n")
        sys.stderr.flush()
        os._exit(70)

    @property
    def context_length(self) -> int:
        """Of the loaded model."""
        assert self._worker is not None
        return self._worker.context_length

    def close(self) -> None:
        """Safe twice."""
        if self._channel is not None:
            self._channel.close()


def main() -> None:
    """Serve until the leader says close or is gone; never returns."""
    rank, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=EngineSpec)
    member = Member(spec, rank, (host, port), os.environ.get(TOKEN_VARIABLE, ""))
    code = 0
    try:
        member.join(spec.options.start_timeout_s)
        while member.handle(None):
            pass
    except BaseException as error:
        sys.stderr.write(f"native: rank {rank} ends: {describe(error)}\n")
        code = 1
    sys.stderr.flush()
    os._exit(code)  # no atexit: a library's teardown must not keep the process


if __name__ == "__main__":
    main()
