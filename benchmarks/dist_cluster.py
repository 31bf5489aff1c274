"""An ingress and its workers on this machine, for the dist_* measurements: programs, found through a folder.

Owns starting and ending them. Knows no measurement.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.servers import Server, free_port, serve, stop
from benchmarks.settings import Settings

ADDRESS = "dyn://bench.pool.generate"
_START_LIMIT_S = 90.0


@dataclass(frozen=True)
class Cluster:
    """`workers` are launchers; each has an engine's process below it."""

    ingress: Server
    workers: list[Server]


def mocker_words(settings: Settings, name: str, **options: float) -> list[str]:
    """The mocker with options of its own, kept in a file of that name among the models."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    path = settings.folder / f"{name}.json"
    path.write_bytes(msgspec.json.encode(options))
    return ["--extra-engine-args", str(path)]


@contextlib.contextmanager
def cluster(
    settings: Settings, num_workers: int, worker_words: Sequence[str] = (), ingress_words: Sequence[str] = ()
) -> Iterator[Cluster]:
    """out=mocker workers behind one in=http. Raises RuntimeError if one does not start."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dist-")))
        flags = ["--store", "file", "--store-path", str(folder / "store")]
        worker_command = [*settings.command, f"in={ADDRESS}", "out=mocker", "demo", *flags, *worker_words]
        workers = [_begin(worker_command, folder / f"worker{number}.log") for number in range(num_workers)]
        for worker in workers:
            stack.callback(stop, worker)
        for worker in workers:
            _until(worker, "Serving ")
        port = free_port()
        command = [*settings.command, "in=http", f"out={ADDRESS}", "--http-port", str(port), *flags, *ingress_words]
        ingress = stack.enter_context(serve("ingress", command, port))
        _until(ingress, f"joins, {num_workers} now")
        yield Cluster(ingress, workers)


def _begin(command: Sequence[str], log: Path) -> Server:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    return Server("worker", "", process, log)


def _until(server: Server, words: str) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while words not in (said := server.log.read_text(errors="replace")):
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{server.name} does not say {words!r}:\n{said[-2000:]}")
        time.sleep(0.05)
