"""Rank 0's side of tensor parallelism: starts this node's other ranks, waits for other nodes' ranks, leads them all.

The death of any rank ends the engine at once, with the reason in its log.

Owns processes and connections; what a rank computes is worker.py's. Torch-free.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from typing import Any

import msgspec

from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.hints import describe_exit
from runner.engines.native.channel import LOST, Channel
from runner.engines.nodes import split_address
from runner.errors import EngineStartFailed

TOKEN_VARIABLE = "LLMRUN_RANK_TOKEN"
_ACCEPT_S = 0.2


class RankLayout:
    """Which ranks live where, as the flags say: node k has the ranks from k * per_node."""

    def __init__(self, options: EngineOptions) -> None:
        self.size, self.num_nodes = options.tensor_parallel_size, options.num_nodes
        self.per_node = self.size // self.num_nodes
        self.first = options.node_rank * self.per_node
        """The rank that lives in this node's engine process."""


def rank_token(spec: EngineSpec) -> str:
    """What a rank shows to prove that it belongs: a secret of this run, or, across nodes, the model's checksum."""
    inherited = os.environ.get(TOKEN_VARIABLE)
    if inherited:
        return inherited
    return spec.card.mdcsum or spec.card.name if spec.options.num_nodes > 1 else secrets.token_hex(16)


def spawn_local(spec: EngineSpec, layout: RankLayout, address: tuple[str, int], token: str) -> list[LocalRank]:
    """Start the ranks of this node but the first, which is this process."""
    ranks = range(layout.first + 1, layout.first + layout.per_node)
    return [LocalRank(spec, rank, address, token) for rank in ranks]


class LocalRank:
    """A rank in a process of its own, in this process's group, so that no end of ours leaves it behind."""

    def __init__(self, spec: EngineSpec, rank: int, address: tuple[str, int], token: str) -> None:
        self.rank = rank
        command = [sys.executable, "-m", "runner.engines.native.member", str(rank), address[0], str(address[1])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, TOKEN_VARIABLE: token})
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died already: seen when it does not connect
            self.process.stdin.write(msgspec.msgpack.encode(spec))
            self.process.stdin.close()

    def stop(self, grace_s: float = 2.0) -> None:
        """Wait, then kill. Safe twice."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Ranks:
    """All ranks but 0, connected. Messages go to all; answers come from all."""

    def __init__(self, spec: EngineSpec) -> None:
        self.layout = RankLayout(spec.options)
        self._spec = spec
        self._token = rank_token(spec)
        self._channels: dict[int, Channel] = {}
        self._local: list[LocalRank] = []
        self._is_closing = False

    def start(self, timeout_s: float) -> None:
        """Listen, start this node's ranks, wait for all. Raises EngineStartFailed naming the ranks that are missing."""
        with self._listen() as listener:
            host, port = listener.getsockname()[:2]
            address = ("127.0.0.1" if host in ("0.0.0.0", "::") else host, port)
            self._local = spawn_local(self._spec, self.layout, address, self._token)
            self._accept(listener, timeout_s)

    def _listen(self) -> socket.socket:
        host, port = "127.0.0.1", 0
        if self.layout.num_nodes > 1:
            host, port = split_address(self._spec.options.leader_addr or "")
        try:
            return socket.create_server((host, port), backlog=self.layout.size)
        except OSError as error:
            raise EngineStartFailed(
                f"rank 0 cannot listen on {host}:{port}: {error.strerror or error}; --leader-addr must be an address "
                "of this node and a free port"
            ) from error

    def _accept(self, listener: socket.socket, timeout_s: float) -> None:
        listener.settimeout(_ACCEPT_S)
        deadline = time.monotonic() + timeout_s
        while len(self._channels) < self.layout.size - 1:
            self._check_local()
            with contextlib.suppress(TimeoutError):
                self._greet(listener.accept()[0])
            if time.monotonic() > deadline:
                missing = sorted(set(range(1, self.layout.size)) - set(self._channels))
                nodes = sorted({rank // self.layout.per_node for rank in missing})
                raise EngineStartFailed(
                    f"rank(s) {', '.join(map(str, missing))} of node(s) {', '.join(map(str, nodes))} did not join "
                    f"within {timeout_s:g} s; start them with the same model, --num-nodes and --leader-addr"
                )

    def _greet(self, sock: socket.socket) -> None:
        """A rank says who it is; whoever does not is sent away."""
        channel = Channel(sock)
        hello = channel.receive(5.0)
        if hello is None or hello[0] != "hello" or not isinstance(hello[1], dict):
            channel.close()
            return
        rank: Any = hello[1].get("rank")
        token, problem = str(hello[1].get("token")), None
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            problem = "it has another model, or belongs to another run (model checksums differ)"
        elif not isinstance(rank, int) or not 0 < rank < self.layout.size or rank in self._channels:
            problem = f"rank {rank} is not wanted: there are ranks 1 to {self.layout.size - 1}, once each"
        if problem is None:
            self._channels[rank] = channel
        else:
            channel.send("refused", problem)
            channel.close()

    def _check_local(self) -> None:
        for local in self._local:
            code = local.process.poll()
            if code is not None:
                raise EngineStartFailed(f"rank {local.rank} did not start: {describe_exit(code)}")

    def send(self, kind: str, payload: Any = None) -> None:
        """To all. A rank that is gone is noticed by its channel."""
        for channel in self._channels.values():
            with contextlib.suppress(OSError):
                channel.send(kind, payload)

    def answers(self, timeout_s: float) -> list[Any]:
        """One answer of each rank, in order of ranks. Raises EngineStartFailed with what a rank says went wrong."""
        found = []
        for rank, channel in sorted(self._channels.items()):
            message = channel.receive(timeout_s)
            if message is None:
                raise EngineStartFailed(f"rank {rank} did not answer within {timeout_s:g} s")
            kind, payload = message
            if kind in (LOST, "failed"):
                raise EngineStartFailed(f"rank {rank}: {self._ending(rank, str(payload))}")
            found.append(payload)
        return found

    def watch(self) -> None:
        """From now on the end of any rank ends this process, at once, with the reason as its last words."""
        for rank, channel in self._channels.items():
            channel.watch(lambda reason, rank=rank: self._end(rank, reason))  # type: ignore[misc]

    def _end(self, rank: int, reason: str) -> None:
        if self._is_closing:
            return
        sys.stderr.write(f"native: rank {rank} is gone, which ends the engine: {self._ending(rank, reason)}\n")
        sys.stderr.flush()
        os._exit(70)

    def _ending(self, rank: int, reason: str) -> str:
        for local in self._local:
            if local.rank == rank:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    local.process.wait(1.0)
                return f"{reason}; {describe_exit(local.process.poll())}"
        return f"{reason} (node {rank // self.layout.per_node})"

    def close(self) -> None:
        """Ask all to end, and kill those of this node that do not. Safe twice."""
        self._is_closing = True
        self.send("close")
        for channel in self._channels.values():
            channel.close()
        for local in self._local:
            local.stop()
