"""What goes wrong in test_dyn_chaos.py: workers killed, frozen, cut off; etcd and NATS killed, etcd emptied.

Owns the programs and the faults, each of which heals itself. Knows nothing of requests. With root each worker stands in
a network namespace of its own, and a cut takes its wire away: no packet tells either side. Without, nothing is cut.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.runner.net import daemons
from tests.runner.net.cluster import Program

HUB = "10.79.0.1"
"""Where ingress, etcd and NATS are."""
CAN_CUT = os.geteuid() == 0 and shutil.which("ip") is not None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A worker's machine: a namespace with one wire to this one."""

    def __init__(self, number: int) -> None:
        self.name = f"llc{os.getpid()}x{number}"
        self._gate = f"10.79.{number}.1"
        self.address = f"10.79.{number}.2" if CAN_CUT else "127.0.0.1"
        self.before = ["ip", "netns", "exec", self.name] if CAN_CUT else []
        if CAN_CUT:
            self._lay(f"lc{os.getpid() % 100_000}x{number}", number)

    def _lay(self, wire: str, number: int) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "add", wire, "type", "veth", "peer", "name", "wire", "netns", self.name)
        _ip("addr", "add", f"{self._gate}/24", "dev", wire)
        _ip("link", "set", wire, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "wire")
        _ip("-n", self.name, "link", "set", "lo", "up")
        self.heal()

    def cut(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        _ip("-n", self.name, "link", "set", "wire", "down")

    def heal(self) -> None:
        """As before."""
        _ip("-n", self.name, "link", "set", "wire", "up")
        _ip("-n", self.name, "route", "replace", "default", "via", self._gate)

    def close(self) -> None:
        """Take the namespace away, and its wire with it."""
        if CAN_CUT:
            subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


class Chaos:
    """A cluster and its faults. `said` is a log of them; `trouble` what no fault explains."""

    def __init__(self, folder: Path, engine: str, *, planes: tuple[str, ...], seed: int) -> None:
        self.folder, self.planes = folder, planes
        self.said: list[str] = []
        self.trouble: list[str] = []
        self.port = daemons.free_port()
        self.counts: dict[str, int] = {}
        self._engine = engine
        self._rng = random.Random(seed)
        self._workers: list[Program] = []
        self._ingress: Program | None = None
        self._born = time.monotonic()
        self.hosts: list[Host] = []
        self.etcd: daemons.Daemon
        self.nats: daemons.Daemon

    @property
    def _hub(self) -> str:
        return HUB if CAN_CUT else "127.0.0.1"

    async def start(self) -> None:
        """All programs, and all workers known to the ingress."""
        # Host 0 lends this machine an address that no cut takes away.
        self.hosts = [Host(number) for number in range(len(self.planes) + 1)]
        self.etcd = daemons.etcd(self.folder / "etcd", self._hub)
        self.nats = daemons.nats(host=self._hub)
        self.etcd.start()
        self.nats.start()
        self._workers = list(await asyncio.gather(*map(self._worker, range(len(self.planes)))))
        words = ["in=http", "out=dyn://ns.pool.gen", "--http-port", str(self.port), "--migration-limit", "3"]
        self._ingress = Program([*words, "--dyn-host", self._hub], self.folder, **self._env)
        await self._ingress.until(f"joins, {len(self.planes)} now")

    @property
    def _env(self) -> dict[str, str]:
        return {
            "ETCD_ENDPOINTS": f"http://{self._hub}:{self.etcd.port}",
            "NATS_SERVER": f"nats://{self._hub}:{self.nats.port}",
        }

    async def _worker(self, at: int) -> Program:
        """A worker that serves; tried again while etcd or NATS is away."""
        host = self.hosts[at + 1]
        words = ["in=dyn://ns.pool.gen", self._engine, "demo", "--request-plane", self.planes[at]]
        program = None
        for _ in range(60):
            program = Program([*words, "--dyn-host", host.address], self.folder, host.before, **self._env)
            while program.process.poll() is None:
                if "Serving " in program.said:
                    return program
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
        raise AssertionError(f"worker {at} does not start: {program.said if program else ''}")

    async def faults(self, until: float) -> None:
        """Worker faults and daemon faults, side by side, until a time of the monotonic clock; then all is well."""
        await asyncio.gather(self._some(self._worker_fault, until), self._some(self._daemon_fault, until))

    async def _some(self, fault: object, until: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(self._rng.uniform(0.5, 4.0))
            await fault()  # type: ignore[operator]

    async def _worker_fault(self) -> None:
        kinds = ["kill", "freeze", *(["cut"] if CAN_CUT else [])]
        kind, at = self._rng.choice(kinds), self._rng.randrange(len(self._workers))
        self._look()
        self._say(kind, f"worker {at}")
        worker, pause_s = self._workers[at], self._rng.choice((0.5, 2.0, 5.0, 14.0))
        if kind == "kill":
            worker.close()
            self._workers[at] = await self._worker(at)
        elif kind == "freeze":
            worker.signal(signal.SIGSTOP)
            await asyncio.sleep(pause_s)
            worker.signal(signal.SIGCONT)
        else:
            self.hosts[at + 1].cut()
            await asyncio.sleep(pause_s)
            self.hosts[at + 1].heal()
        self._say("healed", f"worker {at}")

    async def _daemon_fault(self) -> None:
        kind = self._rng.choice(("etcd restart", "etcd wipe", "nats restart"))
        self._say(kind, "")
        daemon = self.nats if kind == "nats restart" else self.etcd
        daemon.kill()
        if kind == "etcd wipe":
            await asyncio.to_thread(shutil.rmtree, self.folder / "etcd")
        await asyncio.sleep(self._rng.choice((0.0, 1.0, 4.0, 13.0)))
        await asyncio.to_thread(daemon.start)
        self._say("healed", kind)

    def _say(self, kind: str, what: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.said.append(f"{time.monotonic() - self._born:7.1f} s {kind} {what}")

    def _look(self) -> None:
        """Nobody may end by himself."""
        for program in [*self._workers, *filter(None, [self._ingress])]:
            if program.process.poll() is not None:
                self.trouble.append(f"ended with {program.process.returncode}: {program.said[-2000:]}")

    async def close(self) -> None:
        """End everything."""
        self._look()
        for program in [*self._workers, *filter(None, [self._ingress])]:
            program.close()
        for daemon in (self.etcd, self.nats):
            daemon.kill()
        for host in self.hosts:
            host.close()
