"""Eight chats at once: output tokens a second over HTTP against llama.cpp's Python server and its C++ server.

The same model file, threads and context everywhere; the library should be of the same build (see README.md).
"""

from __future__ import annotations

import contextlib

from benchmarks.client import interleaved, median, spread_text
from benchmarks.row import Row, skipped
from benchmarks.servers import Server, llama_cpp_server, llama_server, llmrun
from benchmarks.settings import Settings, random_model
from runner.bench.records import Point
from runner.bench.workload import Shape

CHATS = 8
CONTEXT = 1024
BARS = {"llama_cpp.server": 6.0, "llama-server": 1.0}


def measure(settings: Settings) -> list[Row]:
    """One row for each rival."""
    shape = Shape(input_len=64, output_len=32 if settings.is_quick else 96)
    with contextlib.ExitStack() as stack:
        servers = start(stack, settings, parallel=CHATS)
        points = interleaved(servers, settings.repeats, CHATS, CHATS if settings.is_quick else 3 * CHATS, shape)
    return [_row(rival, points) for rival in BARS]


def start(stack: contextlib.ExitStack, settings: Settings, *, parallel: int) -> list[Server]:
    """Our server first, then the rivals that are here."""
    model, rivals = random_model(settings), settings.rivals
    limits = ["--context-length", str(CONTEXT), "--max-running", str(parallel), "--threads", str(settings.threads)]
    servers = [stack.enter_context(llmrun(settings, model, *limits))]
    if rivals.llama_server:
        servers.append(stack.enter_context(llama_server(settings, model, context=CONTEXT, parallel=parallel)))
    if rivals.llama_cpp_python:
        servers.append(stack.enter_context(llama_cpp_server(settings, model, context=CONTEXT)))
    return servers


def _row(rival: str, points: dict[str, list[Point]]) -> Row:
    what = f"{CHATS} chats at once, output tokens/s, against {rival}"
    bar = f">= {BARS[rival]:g}x"
    if rival not in points:
        return skipped(what, bar, f"{rival} is not here (see benchmarks/README.md)")
    ours, theirs = ([point.output_tokens_per_s for point in points[name]] for name in ("llmrun", rival))
    ratio = median(ours) / median(theirs)
    return Row(
        what=what,
        ours=spread_text(ours, "tok/s"),
        rival=spread_text(theirs, "tok/s"),
        ratio=f"{ratio:.2f}x",
        bar=bar,
        is_met=ratio >= BARS[rival],
        notes=[
            f"{name}: time to first token p50 {median([p.ttft_ms.p50 for p in points[name] if p.ttft_ms]):,.0f} ms, "
            f"client CPU {median([p.client_cpu_us_per_token for p in points[name]]):.1f} us a token"
            for name in ("llmrun", rival)
        ],
    )
