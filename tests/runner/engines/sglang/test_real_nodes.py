"""The real SGLang on two machines (make test-sglang): the answers of one node, and deaths that end both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runner.engines.machines import Machine, can_make, two_machines
from tests.runner.engines.sglang.real import KNOWN, PYTHON
from tests.runner.engines.sglang.test_real_deaths import family_of, left, named

LLMRUN = str(Path(sys.executable).with_name("llmrun"))
PORT = 8089
START_S = 300.0
BOUND_S = 10.0
CASES = KNOWN["cases"][:24]
pytestmark = [
    pytest.mark.sglang,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(PYTHON is None, reason="no sglang: llmrun engines install sglang --cpu"),
]
_CLIENT = """
import concurrent.futures, json, sys, urllib.request
url, bodies = sys.argv[1], json.load(sys.stdin)
def ask(body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=400) as reply:
            return reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(json.dumps(list(pool.map(ask, bodies))))
"""


class Node:
    """`llmrun` on one machine, started as the documentation says."""

    def __init__(self, machine: Machine, rank: int, leader: Machine, log: Path) -> None:
        self.machine = machine
        self.log = log
        words = f"in={'none' if rank else 'http'} out=sglang --model-path demo-hf --tensor-parallel-size 2"
        words += f" --num-nodes 2 --node-rank {rank} --dist-init-addr {leader.address}:9876"
        words += f" --http-port {PORT} --threads 1 --context-length 1024 --start-timeout-s {START_S:g}"
        env = {**os.environ, "LLMRUN_SGLANG_PYTHON": str(PYTHON)}
        argv = machine.command([LLMRUN, *words.split()])
        with log.open("wb") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output, env=env, stdin=subprocess.DEVNULL)

    def ask(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The replies to a client on the same machine, which sends all requests at once."""
        argv = self.machine.command([sys.executable, "-c", _CLIENT, f"http://127.0.0.1:{PORT}/v1/completions"])
        done = subprocess.run(argv, input=json.dumps(bodies), stdout=subprocess.PIPE, text=True, check=True)
        return [json.loads(reply) for reply in json.loads(done.stdout)]

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while "Serving " not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def family(self) -> list[psutil.Process]:
        return family_of(self.process.pid)


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    if not can_make():
        pytest.skip("network namespaces need root and ip")
    with two_machines() as made:
        yield made


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    """Nodes of a test, killed at its end."""
    started: list[Node] = []
    yield started
    for node in started:
        if node.process.poll() is None:
            family = node.family()
            for process in family:
                process.kill()
        node.process.wait()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def body(prompt: str | list[int], max_tokens: int) -> dict[str, Any]:
    return {"model": "demo-hf", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}


def is_right(node: Node) -> bool:
    """Whether all known answers come, by text and number of tokens."""
    replies = node.ask([body(case["prompt_ids"], len(case["greedy_ids"]) + 1) for case in CASES])
    texts = [reply["choices"][0]["text"] for reply in replies]
    return texts == [case["text"] for case in CASES]


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
    nodes += [Node(leader, 0, leader, tmp_path / "0.log"), Node(other, 1, leader, tmp_path / "1.log")]
    nodes[0].wait_ready()
    assert is_right(nodes[0])

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
    nodes.append(Node(other, 1, leader, tmp_path / "1b.log"))
    assert is_right(nodes[0])

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
    assert "node(s) 1 of 2 did not join at 127.0.0.1:9877 within 27 s" in done.stderr
    assert "--node-rank" in done.stderr
