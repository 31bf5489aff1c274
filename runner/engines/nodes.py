"""Nodes: how the machines of one run find each other before their engine starts, and notice each other's end.

Node 0 listens at --leader-addr, every other node says who it is over a connection of one line of JSON each way, and
when all are there they start the engine (SGLang, vLLM), whose own rendezvous then takes the same port. The connections
stay open: the end of one is the end of that node, seen at once where collectives might wait for ever. Child side.

    node k -> node 0   {"node": k, ...}                  node 0 -> node k   {"refused": "..."} | {"go": true}
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from runner.engines import endings
from runner.engines.base import EngineSpec
from runner.errors import EngineStartFailed

Progress = Callable[[str, "float | None"], None]
_HELLO_S = 5.0
_RETRY_S = 0.5
_MAX_LINE = 64 * 1024
_IDLE_S, _INTERVAL_S, _PROBES = 2, 2, 2
"""TCP keepalive: a machine that vanished is noticed within six seconds."""
_JOIN_SHARE = 0.8
"""Of the start's time: the rest is for telling it."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's place in a run of several."""

    leader_addr: str
    node: int
    num_nodes: int
    facts: dict[str, Any]
    """What must be equal on all nodes, by the names that a user knows."""
    timeout_s: float


def place_of(spec: EngineSpec) -> Place | None:
    """None where the run has one machine only."""
    options = spec.options
    if options.num_nodes == 1:
        return None
    facts = {
        "--num-nodes": options.num_nodes,
        "--tensor-parallel-size": options.tensor_parallel_size,
        "model (checksum)": spec.card.mdcsum or spec.card.name,
    }
    return Place(
        leader_addr=options.leader_addr or "",
        node=options.node_rank,
        num_nodes=options.num_nodes,
        facts=facts,
        timeout_s=_JOIN_SHARE * options.start_timeout_s,
    )


def enter(place: Place, more_facts: dict[str, Any], host_variable: str, progress: Progress) -> Nodes:
    """`join`, with what the engine must know of the network in its environment (`host_variable`: what it calls this
    machine's address); from then on the end of a node ends this process (endings.py)."""
    address = split_address(place.leader_addr)
    for name, value in route_variables(address, host_variable).items():
        os.environ.setdefault(name, value)
    facts = {**place.facts, **more_facts}
    nodes = join(address, place.node, place.num_nodes, facts, place.timeout_s, progress)
    nodes.watch(endings.leave)
    return nodes


def join(
    address: tuple[str, int], node: int, num_nodes: int, facts: dict[str, Any], timeout_s: float, progress: Progress
) -> Nodes:
    """Wait until all nodes are there. Raises EngineStartFailed naming those that are not, or what does not fit.

    `facts`: what must be equal on all nodes, by the names that a user knows.
    """
    if node == 0:
        return _Gathering(address, num_nodes, facts).run(timeout_s, progress)
    return _follow(address, node, facts, timeout_s, progress)


class Nodes:
    """Open connections to other nodes: all of them on node 0, only node 0 on the others."""

    def __init__(self, sockets: dict[int, socket.socket]) -> None:
        self._sockets = sockets
        self._is_closing = False

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Call `on_end(reason)` in a thread when a node has gone."""
        threading.Thread(target=self._wait, args=(on_end,), name="llmrun-nodes", daemon=True).start()

    def _wait(self, on_end: Callable[[str], None]) -> None:
        by_socket = {sock: node for node, sock in self._sockets.items()}
        while True:
            ready, _, _ = select.select(list(by_socket), [], [])
            for sock in ready:
                if _is_closed(sock):
                    if not self._is_closing:
                        on_end(f"node {by_socket[sock]} is gone")
                    return

    def close(self) -> None:
        """The other nodes end too. Safe twice."""
        self._is_closing = True
        for sock in self._sockets.values():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class _Gathering:
    """Node 0 while it waits."""

    def __init__(self, address: tuple[str, int], num_nodes: int, facts: dict[str, Any]) -> None:
        self._address = address
        self._num_nodes = num_nodes
        self._facts = facts
        self._sockets: dict[int, socket.socket] = {}

    def run(self, timeout_s: float, progress: Progress) -> Nodes:
        deadline = time.monotonic() + timeout_s
        with self._listen() as listener:
            listener.settimeout(_RETRY_S)
            while missing := self._missing():
                progress(f"waiting for node(s) {_listed(missing)} to join at {_text(self._address)}", None)
                if time.monotonic() > deadline:
                    self._close()
                    raise EngineStartFailed(
                        f"node(s) {_listed(missing)} of {self._num_nodes} did not join at {_text(self._address)} "
                        f"within {timeout_s:g} s",
                        hint="start the same command there with in=none and its own --node-rank; the port must be "
                        "open between the machines",
                    )
                with contextlib.suppress(TimeoutError):
                    self._greet(listener.accept()[0])
        for sock in self._sockets.values():
            _send(sock, {"go": True})
        return Nodes(self._sockets)

    def _listen(self) -> socket.socket:
        try:
            return socket.create_server(self._address, family=_family(self._address[0]), backlog=self._num_nodes)
        except OSError as error:
            raise EngineStartFailed(
                f"node 0 cannot listen on {_text(self._address)}: {error.strerror or error}",
                hint="--leader-addr must be an address of node 0 and a free port",
            ) from error

    def _missing(self) -> list[int]:
        """Also those that came and went again."""
        for node, sock in list(self._sockets.items()):
            if _is_readable(sock) and _is_closed(sock):
                del self._sockets[node]
        return [node for node in range(1, self._num_nodes) if node not in self._sockets]

    def _greet(self, sock: socket.socket) -> None:
        """A node says who it is; whoever does not, or does not fit, is sent away with the reason."""
        _keep_alive(sock)
        hello = _receive(sock, _HELLO_S)
        reason = self._refusal(hello)
        if reason is not None:
            sys.stderr.write(f"[llmrun] a node that wants to join is refused: {reason}\n")
            with contextlib.suppress(OSError):
                _send(sock, {"refused": reason})
            sock.close()
            return
        assert hello is not None
        self._sockets[hello["node"]] = sock

    def _refusal(self, hello: dict[str, Any] | None) -> str | None:
        if hello is None or not isinstance(hello.get("node"), int):
            return "it does not speak this protocol"
        node = hello["node"]
        if node not in self._missing():
            return f"node {node} is not wanted: there are nodes 1 to {self._num_nodes - 1}, once each"
        for name, value in self._facts.items():
            if hello.get(name) != value:
                return f"node {node} has {name} {hello.get(name)!r}, node 0 has {value!r}"
        return None

    def _close(self) -> None:
        for sock in self._sockets.values():
            sock.close()


def _follow(address: tuple[str, int], node: int, facts: dict[str, Any], timeout_s: float, progress: Progress) -> Nodes:
    deadline = time.monotonic() + timeout_s
    progress(f"joining node 0 at {_text(address)}", None)
    while True:
        sock = _connect(address, deadline, timeout_s)
        _keep_alive(sock)
        try:
            _send(sock, {"node": node, **facts})
            answer = _receive(sock, max(0.1, deadline - time.monotonic()))
        except OSError:
            answer = None
        if answer is not None and answer.get("go"):
            return Nodes({0: sock})
        sock.close()
        if answer is not None and "refused" in answer:
            raise EngineStartFailed(f"node 0 at {_text(address)} refused this node: {answer['refused']}")
        time.sleep(_RETRY_S)  # node 0 ended while it waited, or something else listens there


def _connect(address: tuple[str, int], deadline: float, timeout_s: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection(address, timeout=max(0.1, min(_HELLO_S, deadline - time.monotonic())))
        except OSError as error:
            if time.monotonic() > deadline:
                raise EngineStartFailed(
                    f"node 0 did not take this node within {timeout_s:g} s at {_text(address)}: "
                    f"{error.strerror or error}",
                    hint="start node 0, and check --leader-addr and what lies between the machines",
                ) from error
            time.sleep(_RETRY_S)


def route_variables(address: tuple[str, int], engines_own: str) -> dict[str, str]:
    """This machine's address and interface towards node 0, as the engine (its variable), gloo and NCCL want to be told.

    Else they guess by a route to the internet or by the host's name, and wait for ever where the guess is wrong.
    """
    import psutil

    try:
        with socket.socket(_family(address[0]), socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            local = str(probe.getsockname()[0])
    except OSError:
        return {}
    variables = {engines_own: local}
    for name, found in psutil.net_if_addrs().items():
        if any(one.address.split("%")[0] == local for one in found):
            variables |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return variables


def split_address(text: str) -> tuple[str, int]:
    """HOST:PORT. Raises EngineStartFailed."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise EngineStartFailed(f"--leader-addr: got {text!r}; HOST:PORT is wanted")
    return host.strip("[]"), int(port)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _keep_alive(sock: socket.socket) -> None:
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"TCP_KEEPIDLE": _IDLE_S, "TCP_KEEPINTVL": _INTERVAL_S, "TCP_KEEPCNT": _PROBES}
    for name, value in wanted.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(sock: socket.socket, message: dict[str, Any]) -> None:
    sock.sendall(json.dumps(message).encode() + b"\n")


def _receive(sock: socket.socket, timeout_s: float) -> dict[str, Any] | None:
    """One line of JSON; None when the other side ends, is silent, or sends something else."""
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_LINE:
        if not select.select([sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        part = sock.recv(4096)
        if not part:
            return None
        line += part
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _is_readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def _is_closed(sock: socket.socket) -> bool:
    """Nothing is ever said after `go`, so whatever can be read is the end."""
    try:
        return not sock.recv(4096)
    except OSError:
        return True


def _text(address: tuple[str, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _listed(nodes: list[int]) -> str:
    return ", ".join(map(str, nodes))
