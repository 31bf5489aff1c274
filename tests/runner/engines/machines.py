"""Machines for tests: network namespaces of this one, each with its own address, loopback and shared memory.

Ranks of SGLang and vLLM find out by shared memory whether they live on one machine, so each has its own. Needs root.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator

_numbers = itertools.count(os.getpid() % 200)
_MOUNT = 'mount -t tmpfs none /dev/shm && exec "$@"'


def can_make() -> bool:
    """Whether this user may make network namespaces here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"llmrun-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return done.returncode == 0


class Machine:
    """One namespace."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def command(self, argv: list[str]) -> list[str]:
        """The command that runs `argv` there."""
        return ["ip", "netns", "exec", self.name, "sh", "-c", _MOUNT, "sh", *argv]


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Connected by a cable."""
    number = next(_numbers)
    ours = [Machine(f"llmrun-{os.getpid()}-{at}", f"10.213.{number}.{at}") for at in (1, 2)]
    cables = [f"lr{os.getpid()}-{at}" for at in (1, 2)]
    try:
        for machine in ours:
            _ip("netns", "add", machine.name)
            _ip("-n", machine.name, "link", "set", "lo", "up")
        first, second = ours
        _ip("link", "add", cables[0], "netns", first.name, "type", "veth", "peer", cables[1], "netns", second.name)
        for machine, cable in zip(ours, cables, strict=True):
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", cable)
            _ip("-n", machine.name, "link", "set", cable, "up")
        yield first, second
    finally:
        for machine in ours:
            subprocess.run(["ip", "netns", "del", machine.name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
