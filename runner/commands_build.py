"""`llmrun build-engine MODEL OUT`: a TensorRT-LLM engine of a model. The texts; runner.engines.trtllm does the work.

OUT goes to stdout, everything else to stderr. Knows nothing of typer (cli.py).
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import EngineStartFailed
from runner.steps import Steps

if TYPE_CHECKING:
    from runner.engines.trtllm.build_plan import BuildWish


def build_engine(wish: BuildWish, out: Path, *, engine_python: str | None, dry_run: bool) -> int:
    """Build, or print the commands. Raises UsageError, EngineStartFailed."""
    from runner.engines.trtllm.build_plan import plan
    from runner.engines.trtllm.builder import finish, run_steps, staging
    from runner.engines.trtllm.environment import ENVIRONMENT
    from runner.engines.trtllm.release import installed_release

    python = ENVIRONMENT.require(engine_python)
    release = installed_release(python)
    if release is None:
        raise EngineStartFailed(
            f"{python} has no tensorrt_llm in its environment, so its version is not known",
            hint="name the Python of a virtual environment: --engine-python PATH",
        )
    out = out.expanduser().absolute()
    if dry_run:
        for step in plan(wish, release, python, out, out.with_name(f"{out.name}.work")):
            _print(shlex.join(step.command))
        return 0
    with Steps() as steps, staging(out) as folder:
        run_steps(plan(wish, release, python, folder / "engine", folder), steps.say, _note)
        finish(folder / "engine", out)
    _print(str(out))
    sys.stderr.write(f"run it: llmrun out=trtllm --model-path {out} --model-config {wish.model}\n")
    return 0


def _note(line: str) -> None:
    sys.stderr.write(f"  {line}\n")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
