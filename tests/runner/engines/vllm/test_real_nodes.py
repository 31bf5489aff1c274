"""The real vLLM on two nodes (make test-vllm): the answers of one node, and deaths that end both."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.runner.engines.machines import can_make, two_machines
from tests.runner.engines.node_program import LLMRUN, Here, Node, Place, body, is_right, left, named
from tests.runner.engines.vllm.test_real import KNOWN, PYTHON

BOUND_S = 10.0
CASES = KNOWN["cases"][:24]
FLAGS = ("--dtype", "float32", "--max-batched-tokens", "256")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(PYTHON is None, reason="no vllm: llmrun engines install vllm --cpu"),
]


@pytest.fixture(params=["one machine", "two network namespaces"])
def machines(request: pytest.FixtureRequest) -> Iterator[tuple[Place, Place]]:
    if request.param == "one machine":
        yield Here(), Here()
        return
    if not can_make():
        pytest.skip("network namespaces need root and ip")
    with two_machines() as made:
        yield made


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_two_nodes_answer_like_one_and_die_together(
    machines: tuple[Place, Place], nodes: list[Node], tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    leader, other = machines
    address, http_port = f"{leader.address}:{free_port()}", free_port()

    def start(machine: Place, rank: int, log: str) -> Node:
        path = tmp_path / log
        nodes.append(Node("vllm", str(PYTHON), machine, rank, address, path, *FLAGS, port=http_port))
        return nodes[-1]

    first, second = start(leader, 0, "0.log"), start(other, 1, "1.log")
    first.wait_ready()
    assert is_right(first, CASES)

    # a seeded prompt that is read in pieces, in two ranks
    hot = {**body([5, 6, 7] * 300, 8), "temperature": 1.0, "seed": 3}
    replies = first.ask([hot] * 4)
    assert len({reply["choices"][0]["text"] for reply in replies}) == 1

    # kill -9 of the rank of node 1 under 32 streams
    endless = {**body([5] * 20, 900), "ignore_eos": True}
    streams = pool.submit(first.ask, [endless] * 32)
    time.sleep(5.0)
    assert not streams.done()
    launchers = {node.process.pid for node in nodes}
    engines = [process for node in nodes for process in node.family() if process.pid not in launchers]
    engines = [process for process in engines if LLMRUN not in process.cmdline()]
    killed_at = time.monotonic()
    named(second.family(), "VLLM::Worker").send_signal(signal.SIGKILL)
    replies = streams.result()
    assert time.monotonic() - killed_at < BOUND_S
    assert all("node 1 is gone" in str(reply["error"]) for reply in replies), replies[:2]
    assert second.process.wait(BOUND_S) == 1
    assert not left(engines, BOUND_S - (time.monotonic() - killed_at))
    assert "VLLM::Worker" in second.log.read_text()

    # node 1 comes back, and the next request starts the engine again
    third = start(other, 1, "1b.log")
    assert is_right(first, CASES)

    # kill -9 of node 0's launcher: nothing is left there, and node 1 ends
    here, there = first.family(), third.family()
    named(here, LLMRUN).send_signal(signal.SIGKILL)
    assert not left(here, 5.0)
    assert third.process.wait(BOUND_S) == 1
    assert "node 0 is gone" in third.log.read_text()
    assert not left(there, 1.0)


def test_a_node_that_does_not_come_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    words = "in=http out=vllm --model-path demo-hf --tensor-parallel-size 2 --num-nodes 2 --node-rank 0"
    words += f" --leader-addr {address} --start-timeout-s 10 --engine-python {PYTHON}"
    done = subprocess.run([LLMRUN, *words.split()], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"node(s) 1 of 2 did not join at {address} within 8 s" in done.stderr
    assert "--node-rank" in done.stderr
