"""benchmarks.gpu at toy size on the CPU: every line runs, none fails, the report is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from benchmarks.gpu.__main__ import LINES, Report

QUICK = [line for line in LINES if line not in ("rival", "graphs")]
"""The graphs are checked in tests/runner/engines/native; the rival takes long to import."""


def _dry_run(path: Path, *options: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(path), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    assert json.loads(path.read_text()) == report
    return report


def _check(report: dict[str, Any]) -> None:
    lines = report["lines"]
    assert report["machine"]["torch"] and "limits" in lines
    assert lines["check"]["failed"] == {}
    for name in ("decode", "prefill", "int8"):
        assert isinstance(lines[name]["met"], bool) and lines[name]["bar"] > 0
    assert lines["serving"]["output_tokens"] > 0
    assert lines["attention"]["decode"] and lines["products"]["qkv"]


def test_dry_run(tmp_path: Path) -> None:
    """All lines of ours."""
    report = _dry_run(tmp_path / "gpu.json", "--lines", *QUICK)
    _check(report)
    assert "serving against the rival" not in report["lines"]


@pytest.mark.slow
def test_dry_run_with_the_rival(tmp_path: Path) -> None:
    """All lines."""
    pytest.importorskip("transformers")
    report = _dry_run(tmp_path / "gpu.json")
    _check(report)
    assert report["lines"]["rival"]["is_complete"]
    assert report["lines"]["graphs"]["problems"] == []
    assert report["lines"]["serving against the rival"]["ratio"] > 0


def test_a_line_that_fails_is_told_and_the_next_goes_on(tmp_path: Path) -> None:
    """And lines after the limit are left out."""
    report = Report(tmp_path / "gpu.json", limit_s=60.0)

    def fail() -> dict[str, Any]:
        raise ValueError("no such kernel")

    assert report.line("bad", fail)["error"] == "ValueError: no such kernel"
    assert report.line("good", lambda: {"share": 0.123456})["share"] == 0.123456
    late = Report(None, limit_s=-1.0)
    assert "left out" in late.line("late", dict)["error"]
    written = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    assert written["good"]["share"] == 0.1235 and "error" in written["bad"]
