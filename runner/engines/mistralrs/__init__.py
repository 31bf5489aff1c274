"""out=mistralrs: mistral.rs (its Python package) in a child process, under the Python of its own environment.

This file is the launcher's side: it imports no mistralrs. The child's side is engine.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.engines.base import Engine, EngineSpec

CHILD = "runner.engines.mistralrs.engine:make"


def make_engine(spec: EngineSpec) -> Engine:
    """The parent's side. Raises UsageError for options that it cannot honour, EngineStartFailed without mistralrs."""
    from runner.engines.mistralrs.environment import ENVIRONMENT
    from runner.engines.mistralrs.settings import read_settings
    from runner.engines.process import ProcessEngine

    env = read_settings(spec).env
    python = ENVIRONMENT.require(spec.options.engine_python)
    return ProcessEngine(spec, CHILD, shape="async", python=python, env=env)


def describe_command(spec: EngineSpec) -> list[str]:
    """For --dry-run: environment variables, interpreter, and the arguments of mistral.rs' Runner. Starts nothing."""
    from runner.engines.mistralrs.environment import ENVIRONMENT
    from runner.engines.mistralrs.settings import read_settings

    settings = read_settings(spec)
    python = ENVIRONMENT.find(spec.options.engine_python) or "python"
    which = ", ".join(f"{name}={value!r}" for name, value in settings.which.items())
    arguments = "".join(f", {name}={value!r}" for name, value in settings.arguments.items())
    variables = [f"{name}={value}" for name, value in settings.env.items()]
    runner = f"mistralrs.Runner(Which.{settings.kind}({which}){arguments})"
    return [*variables, python, "-m", "runner.engines.child", runner]
