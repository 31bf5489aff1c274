"""`llmrun` on one of several machines, and a client there; for the tests of multi-node engines (see machines.py)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import psutil

from model_cards.resolve import resolve
from model_cards.tokenizer import load_tokenizer

LLMRUN = str(Path(sys.executable).with_name("llmrun"))
START_S = 300.0
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


class Place(Protocol):
    """machines.Machine, or Here."""

    address: str

    def command(self, argv: list[str]) -> list[str]:
        """The command that runs `argv` there."""


class Here:
    """This machine, for runs whose nodes are all on it."""

    address = "127.0.0.1"

    def command(self, argv: list[str]) -> list[str]:
        """See Place."""
        return argv


class Node:
    """Started as the documentation says: the demo model, two ranks, two nodes."""

    def __init__(
        self, engine: str, python: str, machine: Place, rank: int, leader: str, log: Path, *words: str, port: int = 8089
    ) -> None:
        self.machine = machine
        self.log = log
        self._port = port
        flag = "--dist-init-addr" if engine == "sglang" else "--leader-addr"
        told = f"in={'none' if rank else 'http'} out={engine} --model-path demo-hf --tensor-parallel-size 2"
        told += f" --num-nodes 2 --node-rank {rank} {flag} {leader} --engine-python {python}"
        told += f" --http-port {port} --threads 1 --context-length 1024 --start-timeout-s {START_S:g}"
        argv = machine.command([LLMRUN, *told.split(), *words])
        with log.open("wb") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def ask(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The replies to a client on the same machine, which sends all requests at once."""
        argv = self.machine.command([sys.executable, "-c", _CLIENT, f"http://127.0.0.1:{self._port}/v1/completions"])
        done = subprocess.run(argv, input=json.dumps(bodies), stdout=subprocess.PIPE, text=True, check=True)
        return [json.loads(reply) for reply in json.loads(done.stdout)]

    def wait_ready(self) -> None:
        """Until it serves."""
        deadline = time.monotonic() + START_S
        while "Serving " not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def family(self) -> list[psutil.Process]:
        """Its processes."""
        return family_of(self.process.pid)

    def end(self) -> None:
        """Kill what still runs of it."""
        if self.process.poll() is None:
            for process in self.family():
                process.kill()
        self.process.wait()


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def named(family: list[psutil.Process], name: str) -> psutil.Process:
    """Engines name their processes."""
    return next(one for one in family if name in " ".join(one.cmdline()))


def left(family: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those that still run after `within_s`."""
    return psutil.wait_procs(family, within_s)[1]


def body(prompt: str | list[int], max_tokens: int) -> dict[str, Any]:
    """A greedy completion."""
    return {"model": "demo-hf", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}


def has_known_ids(node: Node, known: dict[str, Any], num_cases: int) -> bool:
    """Whether the known greedy token ids come. The API gives the text of each token (`logprobs`), and each text that
    occurs here belongs to one id of the vocabulary."""
    cases, stops = known["cases"][:num_cases], set(known["stop_token_ids"])
    tokenizer = load_tokenizer(resolve("demo-hf"))
    ids: dict[str, list[int]] = {}
    for token in range(tokenizer.vocab_size):
        ids.setdefault(tokenizer.decode([token]), []).append(token)
    bodies = [{**body(case["prompt_ids"], len(case["greedy_ids"]) + 1), "logprobs": 1} for case in cases]
    told = [[ids[text] for text in reply["choices"][0]["logprobs"]["tokens"]] for reply in node.ask(bodies)]
    return told == [[[token] for token in case["greedy_ids"] if token not in stops] for case in cases]


def is_right(node: Node, cases: list[dict[str, Any]]) -> bool:
    """Whether all known answers come, by text."""
    replies = node.ask([body(case["prompt_ids"], len(case["greedy_ids"]) + 1) for case in cases])
    return [reply["choices"][0]["text"] for reply in replies] == [case["text"] for case in cases]
