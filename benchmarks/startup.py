"""Starting: `llmrun --help` against an import of typer and rich; the demo model's first answer, on two engines."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.client import median
from benchmarks.row import Row
from benchmarks.settings import Settings

HELP_BAR, ANSWER_BAR_S, NATIVE_BAR_S = 2.0, 2.0, 6.0


def measure(settings: Settings) -> list[Row]:
    """Three rows. Each command is run once before, so that files are in the page cache."""
    return [
        _help(settings),
        _answer(settings, 'demo answer from cold start, `llmrun "hi"`, wall time', ["hi"], ANSWER_BAR_S),
        _answer(
            settings,
            'demo answer of out=native from cold start, `llmrun out=native demo-hf "hi"`, wall time',
            ["out=native", "demo-hf", "hi"],
            NATIVE_BAR_S,
            [f"`import torch` alone takes {_wall_s([sys.executable, '-c', 'import torch']):.2f} s of it"],
        ),
    ]


def _help(settings: Settings) -> Row:
    ours, theirs = [], []
    base = [sys.executable, "-c", "import typer, rich"]
    for repeat in range(-1, settings.repeats * 3):
        pair = _wall_s([*settings.command, "--help"]), _wall_s(base)
        if repeat >= 0:
            ours.append(pair[0])
            theirs.append(pair[1])
    ratio = median(ours) / median(theirs)
    return Row(
        what="llmrun --help, wall time",
        ours=f"{median(ours) * 1e3:.0f} ms",
        rival=f"{median(theirs) * 1e3:.0f} ms (python -c 'import typer, rich')",
        ratio=f"{ratio:.2f}x",
        bar=f"<= {HELP_BAR:g}x",
        is_met=ratio <= HELP_BAR,
    )


def _answer(settings: Settings, what: str, words: list[str], bar_s: float, notes: list[str] | None = None) -> Row:
    walls = [_wall_s([*settings.command, *words]) for _ in range(settings.repeats + 1)][1:]
    return Row(
        what=what,
        ours=f"{median(walls):.2f} s ({min(walls):.2f} to {max(walls):.2f})",
        bar=f"<= {bar_s:g} s",
        is_met=median(walls) <= bar_s,
        notes=notes or [],
    )


def _wall_s(command: Sequence[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    wall = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} gave exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return wall
