"""Nodes find each other over one port, refuse what does not fit, and notice each other's end; on loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from runner.engines import nodes
from runner.errors import EngineStartFailed

FACTS = {"--num-nodes": 3, "engine version": "0.5.23"}


@pytest.fixture
def address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return "127.0.0.1", int(sock.getsockname()[1])


@pytest.fixture
def start(address: tuple[str, int]) -> Any:
    """start(node, timeout_s=5, num_nodes=3, **facts) -> a future of its Nodes; closed at the end."""
    with ThreadPoolExecutor(8) as pool:
        started: list[Future[nodes.Nodes]] = []

        def start_one(node: int, timeout_s: float = 5.0, num_nodes: int = 3, **facts: Any) -> Future[nodes.Nodes]:
            told = FACTS | facts
            quiet: Callable[[str, float | None], None] = lambda phase, share: None  # noqa: E731
            started.append(pool.submit(nodes.join, address, node, num_nodes, told, timeout_s, quiet))
            return started[-1]

        yield start_one
        for future in started:
            with contextlib.suppress(EngineStartFailed):
                future.result().close()


def test_all_start_when_all_are_there(start: Any) -> None:
    first = start(1)
    leader = start(0)
    time.sleep(0.3)
    assert not leader.done() and not first.done()
    second = start(2)
    for node in (leader, first, second):
        assert isinstance(node.result(10), nodes.Nodes)


def test_the_rendezvous_may_take_the_port_while_the_connections_stay(start: Any, address: tuple[str, int]) -> None:
    leader, other = start(0, num_nodes=2), start(1, num_nodes=2)
    leader.result(10), other.result(10)
    with socket.socket() as store:
        store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        store.bind(("0.0.0.0", address[1]))
        store.listen()


@pytest.mark.parametrize("who", [0, 1, 2])
def test_the_end_of_one_ends_all(start: Any, who: int) -> None:
    """Node 0 sees any end; when it goes, all others do."""
    joined = [future.result(10) for future in [start(at) for at in range(3)]]
    ended: list[str] = []
    seen = threading.Event()

    def on_end(reason: str) -> None:
        ended.append(reason)
        seen.set()

    witness = joined[0] if who else joined[1]
    witness.watch(on_end)
    joined[who].close()
    assert seen.wait(5)
    assert ended == [f"node {who} is gone"]


def test_nodes_that_do_not_come_are_named(start: Any) -> None:
    leader, first = start(0, timeout_s=1.5), start(1, timeout_s=3)
    with pytest.raises(
        EngineStartFailed, match=r"node\(s\) 2 of 3 did not join at 127.0.0.1:\d+ within 1.5 s"
    ) as caught:
        leader.result(10)
    assert "--node-rank" in caught.value.hint
    with pytest.raises(EngineStartFailed, match="node 0 did not take this node within 3 s"):
        first.result(10)


@pytest.mark.parametrize(
    ("node", "facts", "reason"),
    [
        (1, {"engine version": "0.5.20"}, "node 1 has engine version '0.5.20', node 0 has '0.5.23'"),
        (1, {"--num-nodes": 2}, "node 1 has --num-nodes 2, node 0 has 3"),
        (7, {}, "node 7 is not wanted: there are nodes 1 to 2, once each"),
    ],
)
def test_a_node_that_does_not_fit_hears_why(start: Any, node: int, facts: dict[str, Any], reason: str) -> None:
    leader = start(0)
    with pytest.raises(EngineStartFailed, match=f"refused this node: {reason}"):
        start(node, **facts).result(10)
    start(1), start(2)
    assert isinstance(leader.result(10), nodes.Nodes)  # the others are not disturbed


def test_a_node_that_went_again_may_come_back(start: Any, address: tuple[str, int]) -> None:
    leader = start(0)
    for _ in range(2):
        with _connected(address) as sock:
            sock.sendall(json.dumps({"node": 1, **FACTS}).encode() + b"\n")
            time.sleep(0.3)
    start(1), start(2)
    assert isinstance(leader.result(10), nodes.Nodes)


def test_strangers_at_the_port_do_no_harm(start: Any, address: tuple[str, int]) -> None:
    leader = start(0)
    for noise in (b"GET / HTTP/1.1\r\n\r\n\n", b"\n", b"[1]\n", b"\xff" * 100_000 + b"\n"):
        with contextlib.suppress(OSError), _connected(address) as sock:
            sock.sendall(noise)
    start(1), start(2)
    assert isinstance(leader.result(20), nodes.Nodes)


def _connected(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(address, timeout=2)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_port_that_is_taken_is_said(address: tuple[str, int], start: Any) -> None:
    with socket.create_server(address), pytest.raises(EngineStartFailed, match="cannot listen on"):
        start(0).result(10)


def test_the_route_to_node_0_is_told_to_the_engine() -> None:
    variables = nodes.route_variables(("127.0.0.1", 9), "VLLM_HOST_IP")
    assert variables["VLLM_HOST_IP"] == "127.0.0.1"
    assert variables["GLOO_SOCKET_IFNAME"] == variables["NCCL_SOCKET_IFNAME"]


@pytest.mark.parametrize("text", ["host", "host:", ":9", "host:x", "host:99999"])
def test_addresses_need_a_host_and_a_port(text: str) -> None:
    with pytest.raises(EngineStartFailed, match="HOST:PORT is wanted"):
        nodes.split_address(text)
    assert nodes.split_address("[::1]:9") == ("::1", 9)
