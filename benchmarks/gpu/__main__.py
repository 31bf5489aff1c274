"""Runs every GPU line of out=native and prints one JSON object: machine, versions, figures, bars.

    python -m benchmarks.gpu [--lines NAME ...] [--out FILE]      on one H100 or H200, under 8 minutes
    python -m benchmarks.gpu --dry-run                            all of it at toy size on a CPU, in the interpreter

Needs torch (CUDA), triton, numpy, msgspec; llguidance for the lines with an engine, transformers for the rival. Where
they are missing and nothing can be fetched, bring them along:

    pip install --target .gpu-site --python-version 3.12 --only-binary=:all: msgspec llguidance
    PYTHONPATH=.gpu-site python3 -m benchmarks.gpu

Weights are random and made on the device. A line that fails says why and the others go on; a line that would start
after --limit-s is left out. Progress goes to stderr, with each line's result.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LINES = ("check", "decode", "prefill", "int8", "serving", "rival", "attention", "products", "graphs")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--dry-run", "--cpu-smoke", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--limit-s", type=float, default=440.0, help="no line starts after this")
    parser.add_argument("--out", type=Path, help="also write the JSON here (after every line)")
    return parser.parse_args()


class Report:
    """Results by line, written down after each, so that a run that is cut off leaves what it has."""

    def __init__(self, path: Path | None, limit_s: float) -> None:
        self._path, self._start, self._limit_s = path, time.monotonic(), limit_s
        self.data: dict[str, Any] = {"command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]), "lines": {}}

    def line(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run one line; its result, or {"error": ...}."""
        start = time.monotonic()
        if start - self._start > self._limit_s:
            result: dict[str, Any] = {"error": f"left out: {self._limit_s:g} s were over"}
        else:
            print(f"[{start - self._start:5.0f} s] {name} ...", file=sys.stderr, flush=True)
            try:
                result = measure()
            except Exception as error:
                traceback.print_exc()
                result = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        result = {**result, "line_s": round(time.monotonic() - start, 1)}
        self.data["lines"][name] = result
        print(f"          {json.dumps(_rounded(result))}", file=sys.stderr, flush=True)
        self.write()
        gc.collect()
        return result

    def write(self) -> None:
        """The whole report so far."""
        self.data["seconds"] = round(time.monotonic() - self._start, 1)
        if self._path is not None:
            self._path.write_text(json.dumps(_rounded(self.data), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """Four digits are enough."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All lines that are asked for."""
    from benchmarks.gpu.place import describe, make_place, measure_limits

    place = make_place(arguments.dry_run)
    report = Report(arguments.out, arguments.limit_s)
    report.data["machine"] = describe(place)
    limits = report.line("limits", lambda: measure_limits(place))
    if "error" in limits:
        return report.data
    wanted = set(arguments.lines)
    if "check" in wanted:
        from benchmarks.gpu import kernels

        report.line("check", lambda: kernels.check(place))
        place.empty()
    if "graphs" in wanted:
        report.line("graphs", lambda: _check_graphs(place))
    if wanted & {"decode", "prefill", "int8"}:
        _big_model(report, place, wanted)
    if wanted & {"serving", "rival"}:
        _serving(report, place, wanted)
    if wanted & {"attention", "products"}:
        from benchmarks.gpu import kernels

        for name in ("attention", "products"):
            if name in wanted:
                report.line(name, lambda name=name: getattr(kernels, name)(place))  # type: ignore[misc]
                place.empty()
    return report.data


def _check_graphs(place: Any) -> dict[str, Any]:
    from tests.runner.engines.native.graph_cases import decode_differences

    problems = decode_differences(place.device, is_captured=not place.is_toy)
    return {"problems": problems, "met": not problems}


def _big_model(report: Report, place: Any, wanted: set[str]) -> None:
    from benchmarks.gpu import big_model

    held: dict[str, Any] = {}

    def make() -> dict[str, Any]:
        held["model"] = big_model.make_model(place)
        return {"weights_gb": sum(parameter.nbytes for parameter in held["model"].parameters()) / 1e9}

    report.line("8B model", make)
    if "model" not in held:
        return
    bf16: dict[str, Any] = {}
    if wanted & {"decode", "int8"}:
        bf16 = report.line("decode", lambda: big_model.decode(held["model"], place))
        big_model.release(held["model"])
        place.empty()
    if "prefill" in wanted:
        report.line("prefill", lambda: big_model.prefill(held["model"], place))
        big_model.release(held["model"])
        place.empty()
    if "int8" in wanted:
        report.line("int8", lambda: big_model.int8(held["model"], place, bf16["ms_per_token"]))
    held.clear()
    gc.collect()
    place.empty()


def _serving(report: Report, place: Any, wanted: set[str]) -> None:
    from benchmarks.gpu import serving

    mine = report.line("serving", lambda: serving.ours(place))
    gc.collect()
    place.empty()
    if "rival" in wanted:
        rival = report.line("rival", lambda: serving.transformers(place))
        gc.collect()
        place.empty()
        if "tokens_per_s" in mine:
            report.line("serving against the rival", lambda: serving.compare(place, mine, rival))


def main() -> None:
    """One JSON object on stdout; the exit status is 1 where a line failed."""
    arguments = _arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nobody looks for faster kernels on the Hub while we measure
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    data = _rounded(run(arguments))
    print(json.dumps(data, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(data, indent=1) + "\n")
    sys.exit(1 if any("error" in line for line in data["lines"].values()) else 0)


if __name__ == "__main__":
    main()
