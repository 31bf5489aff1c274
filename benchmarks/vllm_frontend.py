"""out=vllm against `vllm serve`, with vLLM's Python frontend and with its Rust one, on the same EngineCore.

The demo model (3M parameters), one engine process each (uni executor), the same engine flags and the same client; the
frontends are what differs. Tokens a second, the frontend's own CPU per token, time to first token, its memory, and the
time of a start. EngineCore's own CPU per token, and how much of a core it keeps busy, say what a frontend could win.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import client
from benchmarks.processes import cpu_s, engine_child, rss_mb
from benchmarks.quiet import undisturbed
from benchmarks.row import Row, skipped
from benchmarks.servers import Server, free_port, serve
from benchmarks.settings import Settings
from runner.bench.workload import Shape

Maker = Callable[[], AbstractContextManager[Server]]

STREAMS = (1, 8, 32, 128)
CONTEXT = 1024
SHAPE = Shape(input_len=32, output_len=128)
PYTHON, RUST = "vllm serve", "vllm-rs"
SPEED_BARS = {PYTHON: 1.2, RUST: 0.97}
CPU_BARS = {PYTHON: 1 / 2.5, RUST: 1.5}
MEMORY_BAR_MB, START_BAR = 120.0, 0.6
_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Turn:
    """One load on one server."""

    tokens_per_s: float
    cpu_us: float
    """The frontend's own CPU per output token."""
    ttft_ms: float
    core_us: float
    """EngineCore's CPU per output token, the same work under every frontend."""
    core_share: float
    """Of the time, EngineCore kept a core busy; at 1 no frontend can be faster."""


@dataclass(frozen=True)
class Round:
    """One start of all servers, and a turn of each with each number of streams."""

    turns: dict[tuple[str, int], Turn]
    starts_s: dict[str, float]
    memory_mb: float
    """Of our launcher, after its turns."""


def measure(settings: Settings) -> list[Row]:
    """Rows for each number of streams and each rival, then memory and start.

    In each round all are started anew, in another order: one process of the same program is up to 8% faster than the
    next (where its memory lies), and the last of a row faster than the first.
    """
    python = settings.rivals.vllm_python
    if python is None:
        return [skipped("out=vllm against vllm serve", "-", "VLLM_PYTHON is not set: vLLM is not installed here")]
    makers = list(_makers(settings, python).items())
    rounds = [
        _round(makers[at % len(makers) :] + makers[: at % len(makers)], at, settings) for at in range(settings.repeats)
    ]
    rows = [row for streams in STREAMS for rival in SPEED_BARS for row in _rows(rival, streams, _of(streams, rounds))]
    return [*rows, _memory(max(one.memory_mb for one in rounds)), _start([one.starts_s for one in rounds])]


def _of(streams: int, rounds: list[Round]) -> dict[str, list[Turn]]:
    """Every server's turns with that many streams."""
    names = rounds[0].starts_s
    return {name: [one.turns[name, streams] for one in rounds] for name in names}


def _makers(settings: Settings, python: str) -> dict[str, Maker]:
    """How to start each server: ours first."""
    from model_cards import presets

    model = Path(presets.__file__).parent / "demo" / "hf"
    makers: dict[str, Maker] = {
        "llmrun": partial(_ours, settings, model, python),
        PYTHON: partial(_theirs, PYTHON, [python, "-m", "vllm.entrypoints.cli.main", "serve", str(model)], _flags()),
    }
    if settings.rivals.vllm_rs is not None:
        binary = settings.rivals.vllm_rs
        command = [binary, "serve", str(model), "--python", python, "--max-model-len", str(CONTEXT)]
        makers[RUST] = partial(
            _theirs, RUST, command, ["--disable-log-stats", "--", *_engine_flags()], {"VLLM_RUST_FRONTEND_PATH": binary}
        )
    return makers


def _engine_flags() -> list[str]:
    return ["--max-num-seqs", str(max(STREAMS)), "--enforce-eager", "--distributed-executor-backend", "uni"]


def _flags() -> list[str]:
    quiet = ["--disable-log-stats", "--disable-uvicorn-access-log"]
    return ["--max-model-len", str(CONTEXT), *_engine_flags(), *quiet]


def _theirs(
    name: str, command: list[str], flags: list[str], env: dict[str, str] | None = None
) -> AbstractContextManager[Server]:
    port = free_port()
    command = [*command, "--host", "127.0.0.1", "--port", str(port), *flags]
    return serve(name, command, port, env={**_ENV, **(env or {})})


@contextlib.contextmanager
def _ours(settings: Settings, model: Path, python: str) -> Iterator[Server]:
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as extra:
        json.dump({"enforce_eager": True}, extra)  # as the rivals: no compilation
        extra.flush()
        command = [*settings.command, "in=http", "out=vllm", "--model-path", str(model), "--http-port", str(port)]
        command += ["--engine-python", python, "--context-length", str(CONTEXT), "--max-running", str(max(STREAMS))]
        with serve("llmrun", [*command, "--extra-engine-args", extra.name], port, env=_ENV) as server:
            yield server


def _round(makers: list[tuple[str, Maker]], seed: int, settings: Settings) -> Round:
    """All servers up at once, asked one after the other. A start lasts to the first healthy answer."""
    with contextlib.ExitStack() as stack:
        servers, starts = {}, {}
        for name, make in makers:
            begin = time.monotonic()
            servers[name] = stack.enter_context(make())
            starts[name] = time.monotonic() - begin
        turns = {}
        for streams in STREAMS:
            for server in servers.values():
                client.measure(server, streams, streams, Shape(input_len=16, output_len=16), seed=1_000)
            for name, server in servers.items():
                turn = partial(_turn, server, streams, seed, num_rounds=1 if settings.is_quick else 3)
                pids = [other.process.pid for other in servers.values()]
                turns[name, streams] = turn() if settings.is_quick else undisturbed(turn, pids)
        return Round(turns, starts, rss_mb(servers["llmrun"].process.pid))


def _turn(server: Server, streams: int, seed: int, num_rounds: int) -> Turn:
    pids = [server.process.pid, engine_child(server.process.pid)]
    before, began = [cpu_s(pid) for pid in pids], time.monotonic()
    point = client.measure(server, streams, max(6, streams) * num_rounds, SHAPE, seed=seed)
    wall = time.monotonic() - began
    own, core = (cpu_s(pid) - cpu for pid, cpu in zip(pids, before, strict=True))
    assert point.ttft_ms is not None
    per_token = 1e6 / point.output_tokens
    return Turn(point.output_tokens_per_s, own * per_token, point.ttft_ms.p50, core * per_token, core / wall)


def _rows(rival: str, streams: int, turns: dict[str, list[Turn]]) -> list[Row]:
    """Speed, CPU and first token against one rival."""
    if rival not in turns:
        return [skipped(f"{streams} streams against {rival}", "-", "VLLM_RS is not set: no Rust frontend here")]
    ours, theirs = turns["llmrun"], turns[rival]
    speed_bar = None if rival == PYTHON and streams < 32 else SPEED_BARS[rival]
    return [
        _row(f"{streams} streams, tokens/s, against {rival}", ours, theirs, "tokens_per_s", "tok/s", speed_bar),
        _row(
            f"{streams} streams, frontend CPU per token, against {rival}", ours, theirs, "cpu_us", "us", CPU_BARS[rival]
        ),
        _row(f"{streams} streams, time to first token p50, against {rival}", ours, theirs, "ttft_ms", "ms", 1.0),
        _row(f"{streams} streams, EngineCore's CPU per token, under {rival}", ours, theirs, "core_us", "us", None),
        _row(f"{streams} streams, cores EngineCore keeps busy, under {rival}", ours, theirs, "core_share", "", None),
    ]


def _row(what: str, ours: list[Turn], theirs: list[Turn], field: str, unit: str, bar: float | None) -> Row:
    """More tokens a second are better, and less of everything else."""
    mine, other = ([getattr(turn, field) for turn in turns] for turns in (ours, theirs))
    ratio = client.median(mine) / client.median(other)
    is_more_better = field == "tokens_per_s"
    return Row(
        what=what,
        ours=client.spread_text(mine, unit),
        rival=client.spread_text(other, unit),
        ratio=f"{ratio:.2f}x",
        bar="-" if bar is None else f"{'>=' if is_more_better else '<='} {bar:g}x",
        is_met=None if bar is None else (ratio >= bar if is_more_better else ratio <= bar),
    )


def _memory(megabytes: float) -> Row:
    bar = f"<= {MEMORY_BAR_MB:g} MB"
    what = "launcher memory (RSS) with out=vllm, after the loads"
    return Row(what=what, ours=f"{megabytes:.0f} MB", bar=bar, is_met=megabytes <= MEMORY_BAR_MB)


def _start(rounds: list[dict[str, float]]) -> Row:
    """From the command to a healthy server; the files are in the page cache but for the first start of each."""
    ours, theirs = ([one[name] for one in rounds[1:] or rounds] for name in ("llmrun", PYTHON))
    ratio = client.median(ours) / client.median(theirs)
    return Row(
        what="start to the first healthy answer, warm cache",
        ours=client.spread_text(ours, "s"),
        rival=client.spread_text(theirs, "s"),
        ratio=f"{ratio:.2f}x",
        bar=f"<= {START_BAR:g}x",
        is_met=ratio <= START_BAR,
    )
