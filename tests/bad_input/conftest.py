"""A toy model, the program, and one server for each engine that all tests of bad requests share."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.models import CHAT_TEMPLATE, make_random_llama_gguf
from tests.bad_input.client import KEY, Client
from tests.bad_input.program import HANG_S, LLMRUN, Program, check_no_orphan, environment
from tests.conftest import LLAMACPP_LIBRARY

CONTEXT = 256
TRAPS = (
    "{% for message in messages %}"
    "{% if message['content'] == 'REFUSE' %}{{ raise_exception('this model takes no refusals') }}{% endif %}"
    "{% if message['content'] == 'DIVIDE' %}{{ 1 / 0 }}{% endif %}"
    "{% if message['content'] == 'ENDLESS' %}{% for i in range(999999999) %}x{% endfor %}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GGUF file of random weights: 2 layers, a vocabulary of 1,024, a context of 256. Read only."""
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    return make_random_llama_gguf(path, dim=64, layers=2, ffn=128, vocab=1024, heads=2, ctx=CONTEXT, dtype="f32")


@pytest.fixture(scope="session")
def llmrun(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Runs the real command."""
    return Program(tmp_path_factory.mktemp("home"))


@pytest.fixture
def needs_llamacpp() -> None:
    """Skips where there is no llama.cpp library."""
    if LLAMACPP_LIBRARY is None:
        pytest.skip("no llama.cpp library here: llmrun engines install llamacpp")


@pytest.fixture(scope="session", params=["echo_core", pytest.param("llamacpp", marks=pytest.mark.llamacpp)])
def server(request: pytest.FixtureRequest, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A served toy model behind an API key, with a chat template full of traps. It must end clean, too."""
    if request.param == "llamacpp" and LLAMACPP_LIBRARY is None:
        pytest.skip("no llama.cpp library here: llmrun engines install llamacpp")
    home = tmp_path_factory.mktemp("served")
    template, log = home / "traps.jinja", home / "log"
    template.write_text(TRAPS + CHAT_TEMPLATE)
    port, env = free_port(), environment(home)
    words = ["in=http", f"out={request.param}", str(toy), "--http-port", str(port), "--api-key", KEY]
    words += ["--chat-template", str(template), "--model-name", "toy", "--drain-timeout-s", "5"]
    with log.open("wb") as stderr:
        process = subprocess.Popen([*LLMRUN, *words], cwd=home, env=env, stderr=stderr, stdin=subprocess.DEVNULL)
    try:
        _wait_for_start(process, log)
        yield Client(port)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(HANG_S)
        finally:
            process.kill()
            process.wait()
    check_no_orphan(env)
    said = log.read_text(errors="replace")
    assert "Traceback" not in said, said[-5000:]
    assert code in (0, 128 + signal.SIGTERM), said[-5000:]


def free_port() -> int:
    """A port that nobody listens on now."""
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for_start(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + HANG_S
    while b"Serving" not in log.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.05)
