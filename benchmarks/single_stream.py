"""One chat: decode tokens a second over HTTP against llama-server, and against llama-bench without any server."""

from __future__ import annotations

import contextlib
import json
import subprocess
from functools import partial
from pathlib import Path

from benchmarks.client import interleaved, median, spread_text
from benchmarks.client import measure as measure_one
from benchmarks.http_concurrency import CONTEXT
from benchmarks.quiet import undisturbed
from benchmarks.row import Row, skipped
from benchmarks.servers import llama_server, llmrun
from benchmarks.settings import Settings, random_model
from runner.bench.records import Point
from runner.bench.workload import Shape

TOKENS = 128


def measure(settings: Settings) -> list[Row]:
    """Three rows."""
    model = random_model(settings)
    return [_against_server(settings, model), *_against_bench(settings, model)]


def _limits(settings: Settings) -> list[str]:
    return ["--context-length", str(CONTEXT), "--max-running", "1", "--threads", str(settings.threads)]


def _decode_rate(point: Point) -> float:
    """Tokens a second after the first one."""
    assert point.tpot_ms is not None
    return 1e3 / point.tpot_ms.p50


def _against_server(settings: Settings, model: Path) -> Row:
    what, bar = "one chat, decode tokens/s over HTTP, against llama-server", ">= 0.98x"
    if settings.rivals.llama_server is None:
        return skipped(what, bar, "LLAMA_SERVER is not set (see benchmarks/README.md)")
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(llmrun(settings, model, *_limits(settings))),
            stack.enter_context(llama_server(settings, model, context=CONTEXT, parallel=1)),
        ]
        shape = Shape(input_len=16, output_len=TOKENS)
        points = interleaved(servers, settings.repeats, 1, 1 if settings.is_quick else 4, shape)
    ours, theirs = (list(map(_decode_rate, points[name])) for name in ("llmrun", "llama-server"))
    return _row(what, bar, ours, theirs, 0.98)


def _against_bench(settings: Settings, model: Path) -> list[Row]:
    """The bar is tg from an empty context; the second row begins where our chat does, after its prompt."""
    what, bar = f"one chat, decode tokens/s over HTTP, against llama-bench tg{TOKENS}", ">= 0.95x"
    if settings.rivals.llama_bench is None:
        return [skipped(what, bar, "LLAMA_BENCH is not set (see benchmarks/README.md)")]
    ours: list[float] = []
    empty: list[float] = []
    behind: list[float] = []
    with llmrun(settings, model, *_limits(settings)) as server:
        for repeat in range(settings.repeats):
            chat = partial(measure_one, server, 1, 2, Shape(input_len=16, output_len=TOKENS), seed=repeat)
            point = undisturbed(chat, [server.process.pid])
            ours.append(_decode_rate(point))
            depth = round(point.prompt_tokens / point.num_requests)
            for rates, tokens_before in ((empty, 0), (behind, depth)):
                bench = partial(_llama_bench, settings, model, tokens_before)
                rates.append(undisturbed(bench, [server.process.pid]))
    same_depth = f"... at the depth of our chat (-d {depth}; not the bar)"
    return [_row(what, bar, ours, empty, 0.95), _row(same_depth, bar, ours, behind, 0.95)]


def _llama_bench(settings: Settings, model: Path, depth: int) -> float:
    assert settings.rivals.llama_bench is not None
    command = [settings.rivals.llama_bench, "-m", str(model), "-p", "0", "-n", str(TOKENS), "-r", "2", "-o", "json"]
    command += ["-d", str(depth), "-t", str(settings.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def _row(what: str, bar: str, ours: list[float], theirs: list[float], least: float) -> Row:
    ratio = median(ours) / median(theirs)
    return Row(
        what=what,
        ours=spread_text(ours, "tok/s"),
        rival=spread_text(theirs, "tok/s"),
        ratio=f"{ratio:.3f}x",
        bar=bar,
        is_met=ratio >= least,
    )
