"""out=sglang: SGLang's public Engine in a child process, under the Python of SGLang's own environment.

This file is the launcher's side: it imports no sglang. The child's side is engine.py (the Engine), processor.py (in
SGLang's scheduler processes). A node that is not 0 runs the same child, with in=none (runner.engines.nodes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.engines.base import Engine, EngineSpec

CHILD = "runner.engines.sglang.engine:make"
_KILL_AFTER_S = 600.0
"""The first step may compile kernels, and the loop is blocked meanwhile."""


def make_engine(spec: EngineSpec) -> Engine:
    """The parent's side. Raises UsageError for options that it cannot honour, EngineStartFailed without sglang."""
    from runner.engines.process import ProcessEngine
    from runner.engines.sglang.environment import ENVIRONMENT
    from runner.engines.sglang.settings import read_settings

    env = read_settings(spec).env
    python = ENVIRONMENT.require(spec.options.engine_python)
    return ProcessEngine(spec, CHILD, shape="async", python=python, env=env, kill_after_s=_KILL_AFTER_S)


def describe_command(spec: EngineSpec) -> list[str]:
    """For --dry-run: environment variables, interpreter, and the arguments of SGLang's Engine. Starts nothing."""
    from runner.engines.sglang.environment import ENVIRONMENT
    from runner.engines.sglang.settings import read_settings

    settings = read_settings(spec)
    python = ENVIRONMENT.find(spec.options.engine_python) or "python"
    arguments = ", ".join(f"{name}={value!r}" for name, value in settings.arguments.items())
    variables = [f"{name}={value}" for name, value in settings.env.items()]
    return [*variables, python, "-m", "runner.engines.child", f"sglang.Engine({arguments})"]
