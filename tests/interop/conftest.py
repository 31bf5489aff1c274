"""What all tests with NVIDIA Dynamo share: real etcd and nats-server, and a process of Dynamo's of a version."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.runner.net import daemons

Peer = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """etcd and nats-server, named by the two variables."""
    etcd, nats = daemons.etcd(tmp_path / "etcd"), daemons.nats(tmp_path / "jetstream")
    etcd.start()
    nats.start()
    monkeypatch.setenv("ETCD_ENDPOINTS", f"http://127.0.0.1:{etcd.port}")
    monkeypatch.setenv("NATS_SERVER", f"nats://127.0.0.1:{nats.port}")
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_LOG", "error")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    etcd.kill()
    nats.kill()


@pytest.fixture
def dynamo(tmp_path: Path) -> Peer:
    """`with dynamo(VERSION, PLANE, WORD, ...)`: Dynamo's Python runs; its stderr is peer.log. Killed at the end."""

    @contextlib.contextmanager
    def run(version: str, plane: str, *words: str) -> Iterator[subprocess.Popen[str]]:
        command = [python_of(version), *words]
        with (tmp_path / "peer.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "DYN_REQUEST_PLANE": plane}
            )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    return run


def python_of(version: str) -> str:
    """The interpreter of a version's environment; skips where there is none."""
    folder = os.environ.get("DYNAMO_ENVS")
    path = Path(folder or "/nonexistent") / version / "bin" / "python"
    if not path.exists():
        pytest.skip(f"no Dynamo {version}: DYNAMO_ENVS={folder or ''} has no {version}/bin/python")
    return str(path)
