"""A real etcd and a real nats-server for measurements, on free loopback ports. Found as `llmrun up` finds it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.servers import free_port, status
from runner.local_daemons import find_program


@contextlib.contextmanager
def etcd(folder: Path) -> Iterator[str]:
    """Its URL. Raises LlmrunError where there is none, RuntimeError if it does not start."""
    port, peer = free_port(), free_port()
    url, peers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    words = ["--data-dir", str(folder), "--listen-client-urls", url, "--advertise-client-urls", url]
    words += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
    words += ["--initial-cluster", f"default={peers}"]
    command = [find_program("etcd"), *words]
    with _running(command, port, "/health"):
        yield url


@contextlib.contextmanager
def nats() -> Iterator[str]:
    """As etcd."""
    port, watched = free_port(), free_port()
    words = ["-a", "127.0.0.1", "-p", str(port), "-m", str(watched)]
    with _running([find_program("nats-server"), *words], watched, "/healthz"):
        yield f"nats://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(command: list[str], port: int, path: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while status(port, path) != 200:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"{command[0]} does not start: exit code {process.poll()}")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()
