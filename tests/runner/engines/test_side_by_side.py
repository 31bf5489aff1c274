"""Two engines in environments of their own serve at once, each with its own torch: `in=http out=native` and
`in=http out=vllm`, same model, same answers.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.engines.native.environment import ENVIRONMENT as NATIVE
from runner.engines.vllm.environment import ENVIRONMENT as VLLM

PYTHONS = {"native": NATIVE.find(), "vllm": VLLM.find()}
QUESTIONS = ["What is the capital of Italy?", "3 + 4 =", "Spell the word tiger.", "Tell me a story."]
START_S = 120.0
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(None in PYTHONS.values(), reason="no vllm or no native: llmrun engines install NAME"),
]


class Server:
    """`llmrun in=http out=NAME` on a free port."""

    def __init__(self, name: str, python: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = [
            "in=http",
            f"out={name}",
            "demo-hf",
            "--engine-python",
            python,
            "--http-port",
            str(self.port),
            "-t",
            "1",
        ]
        self.process = subprocess.Popen([sys.executable, "-m", "runner", *words, "-c", "1024"])

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """JSON of a path."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def wait(self) -> None:
        """Until it serves."""
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, "it did not come up"
            try:
                self.ask("/v1/models")
                return
            except OSError:
                time.sleep(0.2)

    def answer(self, question: str) -> str:
        """Greedy."""
        body = {"model": "demo-hf", "messages": [{"role": "user", "content": question}], "temperature": 0}
        text: str = self.ask("/v1/chat/completions", {**body, "max_tokens": 64})["choices"][0]["message"]["content"]
        return text

    def torch_libraries(self) -> set[str]:
        """The files of torch that its engine has loaded."""
        engine = psutil.Process(self.process.pid).children(recursive=True)
        maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in engine if process.is_running()]
        return {line.split()[-1] for text in maps for line in text.splitlines() if "/libtorch_cpu" in line}


@pytest.fixture
def servers() -> Iterator[dict[str, Server]]:
    made = {name: Server(name, python) for name, python in PYTHONS.items() if python is not None}
    try:
        for server in made.values():
            server.wait()
        yield made
    finally:
        for server in made.values():
            server.process.send_signal(signal.SIGTERM)
        for server in made.values():
            server.process.wait(60)


def test_two_engines_with_their_own_torch_serve_at_once(servers: dict[str, Server]) -> None:
    answers = {name: [server.answer(question) for question in QUESTIONS] for name, server in servers.items()}
    assert answers["native"] == answers["vllm"]
    assert answers["native"][0] == "The capital of Italy is Rome."
    loaded = {name: server.torch_libraries() for name, server in servers.items()}
    assert all(loaded.values())
    assert not loaded["native"] & loaded["vllm"], "both use one torch"
    launchers = [Path(f"/proc/{server.process.pid}/maps").read_text() for server in servers.values()]
    assert not any("libtorch" in text for text in launchers)
