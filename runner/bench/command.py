"""`llmrun bench`: flags to target and loads, loads to points, points to stdout.

Owns the order of measuring: prepare, warm up, then every load, all of it `--repeat` times so that repeats interleave.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runner.bench import arguments as bench_arguments
from runner.bench import workload
from runner.bench.client import HttpTarget
from runner.bench.load import closed_loop, open_loop
from runner.bench.load import run as run_loop
from runner.bench.records import BenchRequest, Point, Sample, Target
from runner.bench.report import as_json, as_text
from runner.bench.summary import median_point, summarize
from runner.console import say, warn
from runner.errors import UsageError

MAX_TRACE_REQUESTS = 1000


class Load(msgspec.Struct, frozen=True):
    """One load: `concurrency` at once, or (0) at the requests' own times."""

    name: str
    requests: list[BenchRequest]
    concurrency: int


def run(arguments: list[str]) -> int:
    """Measure and print; returns 0, or 1 if any request failed. Raises LlmrunError and CardError."""
    options, words, given = bench_arguments.parse(arguments)
    points, about = run_loop(_measure(options, words, given))
    title = f"llmrun bench: {about['target']}, {about['requests']}"
    sys.stdout.write((as_json(points, about) if options.json else as_text(points, title)) + "\n")
    return 1 if any(point.num_errors for point in points) else 0


async def _measure(
    options: argparse.Namespace, words: list[str], given: dict[str, Any]
) -> tuple[list[Point], dict[str, Any]]:
    target, name, count = await _make_target(options, words, given)
    try:
        loads = make_loads(options, count)
        await _warm_up(target, loads, options)
        runs = [[await _one(target, load, options) for load in loads] for _ in range(options.repeat)]
    finally:
        await target.close()
    about = {"target": name, "requests": _describe(options), "command": ["llmrun", "bench", *sys.argv[2:]]}
    return [median_point(repeats) for repeats in zip(*runs, strict=True)], about


async def _make_target(
    options: argparse.Namespace, words: list[str], given: dict[str, Any]
) -> tuple[Target, str, workload.CountTokens | None]:
    if options.url is None:
        return await _local_target(options, words, given)
    target = HttpTarget(
        options.url,
        endpoint=options.endpoint,
        model=options.request_model,
        api_key=options.api_key,
        extra=_extra_body(options.extra_body),
        timeout_s=options.timeout,
    )
    try:
        for note in await target.prepare():
            warn(note)
    except BaseException:
        await target.close()
        raise
    return target, f"{options.url} ({target.model}, {options.endpoint})", _tokenizer_of(options.tokenizer)


async def _local_target(
    options: argparse.Namespace, words: list[str], given: dict[str, Any]
) -> tuple[Target, str, workload.CountTokens]:
    from runner.bench.local import ServiceTarget
    from runner.config_file import merge
    from runner.launch import start_service
    from runner.plan import make_plan
    from runner.run import find_card, preset_aliases
    from runner.words import parse_words

    settings = merge(given, os.environ)
    model_path = settings.values.get("model_path")
    parsed = parse_words(words, aliases=preset_aliases(), model_path=str(model_path) if model_path else None)
    if parsed.source is not None or parsed.prompt is not None:
        extra = f"in={parsed.source}" if parsed.source is not None else repr(parsed.prompt)
        raise UsageError(f"bench: got {extra}; it takes out=… and MODEL only")
    plan = make_plan(settings, parsed._replace(source="none"), (), terminal=False, resolve=find_card)
    if plan.level == "models":
        raise UsageError(
            f"bench: out={plan.engine.name} runs in other processes; start `llmrun in=http out=dyn://…` and measure it "
            "with --url http://127.0.0.1:8080"
        )
    service, info = await start_service(plan)
    name = f"{plan.card.name} on out={info.name} {info.version}".rstrip()
    target = ServiceTarget(service, endpoint=options.endpoint)
    return target, f"{name}, in process", lambda text: len(service.tokenize(text))


def make_loads(options: argparse.Namespace, count: workload.CountTokens | None) -> list[Load]:
    """The loads that the flags ask for."""
    prompts = workload.Prompts(options.seed, count)
    if options.trace:
        limit = options.num_requests or MAX_TRACE_REQUESTS
        trace = workload.read_trace(Path(options.trace), prompts, speed=options.trace_speed, limit=limit)
        return [Load(f"trace x{options.trace_speed:g}", trace, 0)]
    if options.rate:
        requests = _requests(options, prompts, options.num_requests or max(8, int(options.rate * 10)))
        times = workload.arrivals(options.rate, is_poisson=options.arrival == "poisson", seed=options.seed)
        timed = [msgspec.structs.replace(r, arrival_s=t) for r, t in zip(requests, times, strict=False)]
        return [Load(f"{options.rate:g}/s {options.arrival}", timed, 0)]
    return [
        Load(f"{level} at once", _requests(options, prompts, options.num_requests or max(8, 4 * level)), level)
        for level in bench_arguments.levels(options.concurrency)
    ]


def _requests(options: argparse.Namespace, prompts: workload.Prompts, number: int) -> list[BenchRequest]:
    if options.dataset:
        found = workload.read_dataset(Path(options.dataset), options.output_len)
        return list(itertools.islice(itertools.cycle(found), number))
    shape = workload.Shape(input_len=options.input_len, output_len=options.output_len, prefix_len=options.prefix_len)
    return [prompts.make(shape) for _ in range(number)]


async def _warm_up(target: Target, loads: Sequence[Load], options: argparse.Namespace) -> None:
    """A few short requests of other words, as many at once as will be measured at most."""
    widest = max((load.concurrency for load in loads), default=1) or 4
    number = widest if options.warm_up is None else options.warm_up
    prompts = workload.Prompts(options.seed + 1_000_003)
    shape = workload.Shape(input_len=min(32, options.input_len), output_len=min(16, options.output_len))
    samples = await closed_loop(target, iter([prompts.make(shape) for _ in range(number)]), max(1, number))
    for sample in samples[:1]:
        if sample.error is not None:
            warn(f"warm-up: {sample.error}")


async def _one(target: Target, load: Load, options: argparse.Namespace) -> Point:
    before, cpu = await _server_numbers(target, options), time.process_time()
    progress = _progress(load) if not options.quiet and sys.stderr.isatty() else _no_progress
    samples: list[Sample]
    if load.concurrency:
        samples = await closed_loop(target, iter(load.requests), load.concurrency, progress)
    else:
        samples = await open_loop(target, load.requests, progress)
    cpu_s = time.process_time() - cpu
    after = await _server_numbers(target, options)
    server = {key: after[key] - before.get(key, 0.0) for key in after if after[key] != before.get(key, 0.0)}
    return summarize(load.name, samples, cpu_s=cpu_s, server=_readable(server, samples, after))


def _no_progress(_: int) -> None:
    pass


def _progress(load: Load) -> Callable[[int], None]:
    total = len(load.requests)

    def show(done: int) -> None:
        if done == total or done % max(1, total // 10) == 0:
            say(f"{load.name}: {done} of {total}")

    return show


async def _server_numbers(target: Target, options: argparse.Namespace) -> dict[str, float]:
    numbers = await target.metrics() if isinstance(target, HttpTarget) else {}
    if options.server_pid:
        import psutil

        try:
            process = psutil.Process(options.server_pid)
            times = process.cpu_times()
            numbers |= {"pid_cpu_s": times.user + times.system, "pid_rss_mb": process.memory_info().rss / 1e6}
        except psutil.NoSuchProcess:
            raise UsageError(f"bench: --server-pid: no process {options.server_pid}") from None
    return numbers


def _readable(server: dict[str, float], samples: Sequence[Sample], after: dict[str, float]) -> dict[str, float]:
    """Counters as people want them: means of the histograms, CPU per token of the process."""
    found: dict[str, float] = {}
    for name, value in server.items():
        count = server.get(f"{name.removesuffix('_sum')}_count")
        if name.endswith("_sum") and count:
            found[f"{name.removesuffix('_sum')}_mean"] = value / count
    if "pid_cpu_s" in server:
        tokens = sum(sample.output_tokens for sample in samples) or 1
        found["pid_cpu_us_per_token"] = server["pid_cpu_s"] * 1e6 / tokens
        found["pid_cpu_s"] = server["pid_cpu_s"]
    if "pid_rss_mb" in after:
        found["pid_rss_mb"] = after["pid_rss_mb"]
    return found


def _extra_body(text: str | None) -> dict[str, Any]:
    try:
        data = json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"bench: --extra-body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"bench: --extra-body must be a JSON object; got {text!r}")
    return data


def _tokenizer_of(model: str | None) -> workload.CountTokens | None:
    if model is None:
        return None
    from model_cards.resolve import resolve
    from model_cards.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve(model))
    return lambda text: len(tokenizer.encode(text))


def _describe(options: argparse.Namespace) -> str:
    if options.trace:
        return f"trace {Path(options.trace).name}"
    if options.dataset:
        return f"prompts of {Path(options.dataset).name}, {options.output_len} tokens out"
    prefix = f" ({options.prefix_len} shared)" if options.prefix_len else ""
    return f"{options.input_len} tokens in{prefix}, {options.output_len} out"
