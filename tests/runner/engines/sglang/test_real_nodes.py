"""The real SGLang on two machines (make test-sglang): the answers of one node, and deaths that end both."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.runner.engines.machines import Machine, can_make, two_machines
from tests.runner.engines.node_program import LLMRUN, Node, body, has_known_ids, is_right, left, named
from tests.runner.engines.sglang.real import KNOWN, PYTHON

BOUND_S = 10.0
CASES = KNOWN["cases"][:24]
pytestmark = [
    pytest.mark.sglang,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(PYTHON is None, reason="no sglang: llmrun engines install sglang --cpu"),
]


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    if not can_make():
        pytest.skip("network namespaces need root and ip")
    with two_machines() as made:
        yield made


def start(machine: Machine, rank: int, leader: Machine, log: Path) -> Node:
    return Node("sglang", str(PYTHON), machine, rank, f"{leader.address}:9876", log)


def is_steered_alike(node: Node) -> bool:
    """Whether our logit processor does the same in the ranks of both machines."""
    hot = {**body("The capital of Italy is", 16), "temperature": 3.0, "seed": 5}
    digits = {**body("The capital of Italy is", 16), "guided_regex": "[0-9]{3}"}
    first, again, number = [reply["choices"][0]["text"] for reply in node.ask([hot, hot, digits])]
    return first == again and number.isdigit() and len(number) == 3


def test_two_nodes_answer_like_one_and_die_together(
    machines: tuple[Machine, Machine], nodes: list[Node], tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    leader, other = machines
    nodes += [start(leader, 0, leader, tmp_path / "0.log"), start(other, 1, leader, tmp_path / "1.log")]
    nodes[0].wait_ready()
    assert is_right(nodes[0], CASES)
    assert has_known_ids(nodes[0], KNOWN, len(CASES))
    assert is_steered_alike(nodes[0])

    # kill -9 of a rank of node 1 under 32 streams
    endless = {**body([5] * 20, 900), "ignore_eos": True}
    streams = pool.submit(nodes[0].ask, [endless] * 32)
    time.sleep(3.0)
    assert not streams.done()
    launchers = {node.process.pid for node in nodes}
    engines = [process for node in nodes for process in node.family() if process.pid not in launchers]
    engines = [process for process in engines if LLMRUN not in process.cmdline()]
    killed_at = time.monotonic()
    named(nodes[1].family(), "sglang::scheduler").send_signal(signal.SIGKILL)
    replies = streams.result()
    assert time.monotonic() - killed_at < BOUND_S
    assert all("error" in reply for reply in replies), replies[:2]
    assert nodes[1].process.wait(BOUND_S) == 1
    assert not left(engines, BOUND_S - (time.monotonic() - killed_at))
    assert "sglang::scheduler" in nodes[1].log.read_text()

    # node 1 comes back, and the next request starts the engine again
    nodes.append(start(other, 1, leader, tmp_path / "1b.log"))
    assert is_right(nodes[0], CASES)

    # kill -9 of node 0's launcher: nothing is left there, and node 1 ends
    here, there = nodes[0].family(), nodes[2].family()
    named(here, LLMRUN).send_signal(signal.SIGKILL)
    assert not left(here, 5.0)
    assert nodes[2].process.wait(BOUND_S) == 1
    assert "node 0 is gone" in nodes[2].log.read_text()
    assert not left(there, 1.0)


def test_a_node_that_does_not_come_is_named(tmp_path: Path) -> None:
    words = "in=http out=sglang --model-path demo-hf --tensor-parallel-size 2 --num-nodes 2 --node-rank 0"
    words += " --leader-addr 127.0.0.1:9877 --start-timeout-s 30"
    env = {**os.environ, "LLMRUN_SGLANG_PYTHON": str(PYTHON)}
    done = subprocess.run([LLMRUN, *words.split()], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 1
    assert "node(s) 1 of 2 did not join at 127.0.0.1:9877 within 24 s" in done.stderr
    assert "--node-rank" in done.stderr
