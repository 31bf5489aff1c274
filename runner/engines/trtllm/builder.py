"""Runs the steps of a build in a folder beside OUT, and puts the engine there when it is whole.

Owns processes and folders; which commands, build_plan.py says.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from model_cards.errors import CardError
from model_cards.trtllm_card import engine_fields
from runner.engines import pip
from runner.engines.hints import likely_fix
from runner.engines.trtllm.build_plan import Step
from runner.errors import EngineStartFailed, UsageError

_TAIL_LINES = 30
Say = Callable[[str], None]


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside `out`, removed whatever happens. Raises UsageError where `out` is there already."""
    if out.exists():
        raise UsageError(f"{out} is there already; name another folder, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent)
    except OSError as problem:
        raise UsageError(f"{out} cannot be made: {problem.strerror or problem}") from None
    try:
        with _term_as_interrupt():
            yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_steps(steps: Sequence[Step], say: Say, note: Say) -> None:
    """Each step in turn; `say` hears of its begin, `note` each line of its output. Raises EngineStartFailed."""
    for step in steps:
        say(step.label)
        _run(step, note)


def finish(engine: Path, out: Path) -> None:
    """`engine` becomes `out` if it is one. Raises EngineStartFailed."""
    try:
        engine_fields(engine)
    except CardError as problem:
        raise EngineStartFailed(f"the build ended without an error and made no engine: {problem}") from None
    engine.rename(out)


def _run(step: Step, note: Say) -> None:
    try:
        code, lines = pip.run(list(step.command), os.environ, lambda line: note(line.rstrip()))
    except OSError as problem:
        what = problem.strerror or problem
        raise EngineStartFailed(f"{step.label}: {step.command[0]} cannot be run: {what}") from None
    if code != 0:
        log = "\n".join(lines[-_TAIL_LINES:])
        raise EngineStartFailed(
            f"{step.label} failed with exit code {code}", log_tail=log, hint=likely_fix(log, code, "trtllm")
        )


@contextlib.contextmanager
def _term_as_interrupt() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that the folder goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
