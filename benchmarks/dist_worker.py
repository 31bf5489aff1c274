"""dyn://: CPU of a worker per streamed token, ours and NVIDIA Dynamo's Python binding, asked by the same client.

Both serve 64 streams over TCP through one etcd. Ours leaves the engine, a process of its own, out; theirs has none: its
tokens come from a timer. DYNAMO_PYTHON names a Python with ai-dynamo-runtime 1.x.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import client
from benchmarks.dist_cluster import mocker_words
from benchmarks.dist_daemons import etcd, nats
from benchmarks.processes import cpu_s
from benchmarks.row import Row, skipped
from benchmarks.settings import Settings
from runner.bench.load import run as run_loop
from runner.net.client import NetClient
from runner.net.etcd import EtcdStore
from runner.net.messages import decode_delta, encode_request
from runner.net.records import INSTANCES, Instance, decode_instance
from runner.types import SamplingParams, TokenRequest

STREAMS, TOKENS = 64, 256
_STEP_S = 0.01
_BAR = "<= 1/2"
_WHAT = f"worker CPU per streamed token, {STREAMS} streams, against Dynamo's Python worker"


def measure(settings: Settings) -> list[Row]:
    """One row."""
    python = os.environ.get("DYNAMO_PYTHON")
    if not python:
        return [skipped(_WHAT, _BAR, "DYNAMO_PYTHON is not set")]
    with tempfile.TemporaryDirectory(prefix="dist-") as folder, etcd(Path(folder) / "etcd") as url, nats() as broker:
        env = {**os.environ, "ETCD_ENDPOINTS": url, "DYN_REQUEST_PLANE": "tcp", "DYN_LOG": "error"}
        env |= {"DYN_TCP_RPC_HOST": "127.0.0.1", "NATS_SERVER": broker}
        step = mocker_words(settings, "dist_worker", decode_base_us=_STEP_S * 1e6, decode_us_per_seq=0.0)
        ours = [*settings.command, "in=dyn://bench.ours.generate", "out=mocker", "demo", "--store", "etcd"]
        ours += ["--max-running", str(STREAMS), *step]
        script = Path(__file__).with_name("dist_dynamo_worker.py")
        theirs = [python, str(script), "bench.theirs.generate", str(_STEP_S)]
        log = Path(folder) / "log"
        with _program(ours, env, log) as one, _program(theirs, env, log) as other:
            try:
                costs = run_loop(_measure(url, [one.pid, other.pid], settings.repeats))
            except TimeoutError:
                raise RuntimeError(f"a worker does not register:\n{log.read_text()[-3000:]}") from None
    return [_row(*costs)]


def _row(ours: list[float], theirs: list[float]) -> Row:
    ratio = client.median(ours) / client.median(theirs)
    return Row(
        what=_WHAT,
        ours=client.spread_text(ours, "us"),
        rival=client.spread_text(theirs, "us"),
        ratio=f"{ratio:.2f}",
        bar=_BAR,
        is_met=ratio <= 0.5,
        notes=["requests are part of it: answers of 256 tokens"],
    )


@contextlib.contextmanager
def _program(command: Sequence[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _measure(url: str, pids: list[int], repeats: int) -> tuple[list[float], list[float]]:
    """us per token of both, measured in turn."""
    store, net = EtcdStore((url,)), NetClient("127.0.0.1", "nats://127.0.0.1:1")
    await net.start()
    try:
        async with asyncio.timeout(60):
            instances = [await _find(store, f"{INSTANCES}bench/{name}/") for name in ("ours", "theirs")]
        costs: tuple[list[float], list[float]] = ([], [])
        for repeat in range(repeats + 1):
            for instance, pid, found in zip(instances, pids, costs, strict=True):
                before = cpu_s(pid)
                names = [f"r{repeat}-{number}" for number in range(STREAMS)]
                made = await asyncio.gather(*(_ask(net, instance, name) for name in names))
                if repeat:  # the first is a warm-up
                    found.append((cpu_s(pid) - before) / sum(made) * 1e6)
        return costs
    finally:
        await net.close()
        await store.close()


async def _find(store: EtcdStore, prefix: str) -> Instance:
    async with contextlib.aclosing(store.watch(prefix)) as changes:
        async for change in changes:
            if change.value:
                return decode_instance(change.key, change.value)
    raise RuntimeError(f"nothing at {prefix}")


async def _ask(net: NetClient, instance: Instance, name: str) -> int:
    """The number of tokens. Raises RuntimeError when it is not what was asked for."""
    sampling = SamplingParams(temperature=0.0)
    request = TokenRequest(id=name, token_ids=list(range(300, 316)), sampling=sampling, max_tokens=TOKENS)
    stream = await net.open(instance, name, encode_request(request, "demo", (), ""), {})
    made = 0
    while items := await stream.take(30):
        made += sum(len(decode_delta(item, ()).token_ids) for item in items)
    stream.close()
    if made != TOKENS:
        raise RuntimeError(f"{instance.name}: {made} tokens instead of {TOKENS}")
    return made
