"""Run the benchmarks: `python -m benchmarks [NAME ...] [--quick]`. Prints rows, rewrites their part of RESULTS.md.

Owns the table of measurements and the command line. Each measurement is a file with `measure(settings) -> list[Row]`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path

from benchmarks import results
from benchmarks.settings import Settings, read_rivals, usable_cores

MEASUREMENTS: dict[str, str] = {
    "http_concurrency": "8 chats at once against llama_cpp.server and llama-server",
    "single_stream": "one chat against llama-server and llama-bench",
    "prefix_ttft": "second request with the same 2,000-token prefix",
    "native_cpu": "out=native on the CPU against transformers, vLLM and llama.cpp",
    "frontend_cpu": "the launcher's CPU per streamed token and per request",
    "vllm_frontend": "out=vllm against vllm serve, its Python frontend and its Rust one",
    "gguf_vocab": "metadata and tokenizer of a 128k-token GGUF against gguf.GGUFReader",
    "guided_libraries": "compile and mask times of JSON schemas, llguidance against xgrammar",
    "startup": "--help, and a first answer from cold start",
    "memory": "the launcher's memory while it serves HTTP",
    "native_scheduler": "out=native: schedule and commit, per sequence and step, 256 running",
    "native_size": "out=native: lines without kernels",
    "dist_cost": "dyn://: CPU of ingress and worker per streamed token",
    "dist_worker": "dyn://: CPU of a worker, ours and Dynamo's, per streamed token",
    "dist_latency": "dyn://: latency added to a local engine",
    "dist_throughput": "dyn://: 2 workers against 1",
    "dist_kv": "dyn://: kv routing against round-robin on shared prefixes",
    "dist_instances": "dyn://: 1,000 instances registered, watching and routing",
    "chaos_kill_child": "kill -9 of the engine's process under 32 streams",
    "chaos_kill_launcher": "kill -9 of the launcher",
    "chaos_vanish": "200 clients that connect and vanish",
    "soak": "half an hour of mixed load",
    "fresh_install": "make run on a fresh clone, with and without --prebuilt",
}
LONG = ("soak", "fresh_install", "native_cpu", "vllm_frontend")
"""Only run when named, or with --all."""
RESULTS = Path(__file__).parent / "RESULTS.md"


def _arguments() -> argparse.Namespace:
    listing = "\n".join(f"  {name:<20} {text}" for name, text in MEASUREMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\nmeasurements (default: all but {' and '.join(LONG)}):\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="the long ones too")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few repeats, and RESULTS.md is left alone")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--soak-s", type=float, default=1800.0)
    parser.add_argument("--model", type=Path, help="a GGUF instead of the 134M random one")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / ".cache", help="models are kept here")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"no such measurement: {unknown[0]}; there are {', '.join(MEASUREMENTS)}")
    return options


def main() -> int:
    """Returns 0 if every bar that could be measured is met."""
    options = _arguments()
    settings = Settings(
        is_quick=options.quick,
        threads=options.threads,
        repeats=2 if options.quick else options.repeats,
        soak_s=min(options.soak_s, 60.0) if options.quick else options.soak_s,
        folder=options.folder,
        model=options.model,
        rivals=read_rivals(os.environ),
    )
    names = options.names or [name for name in MEASUREMENTS if options.all or name not in LONG]
    verdicts = [_one(name, settings) for name in names]
    return 0 if all(verdicts) else 1


def _one(name: str, settings: Settings) -> bool:
    try:
        rows = importlib.import_module(f"benchmarks.{name}").measure(settings)
    except Exception:  # one measurement that fails must not hide the others
        print(f"{name}: FAILED\n{traceback.format_exc()}", flush=True)
        return False
    results.show(name, rows)
    if not settings.is_quick:
        command = f"python -m benchmarks {name}"
        results.update(RESULTS, name, results.as_markdown(name, rows, command))
    return all(row.is_met is not False for row in rows)


if __name__ == "__main__":
    sys.exit(main())
