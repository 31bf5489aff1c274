"""out=vllm: vLLM's EngineCore, run by our worker in vLLM's own environment. The launcher's side imports no vllm.

The worker (worker.py, child side) guards EngineCore and reports its wire structs; the launcher (connector.py, link.py)
speaks EngineCore's ZeroMQ protocol. Life, restarts and health are ProcessEngine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.engines.base import Engine, EngineSpec

_KILL_AFTER_S = 600.0
"""A step cannot report in between; the first one may compile kernels."""


def make_engine(spec: EngineSpec) -> Engine:
    """The parent's side. Raises UsageError for options that it cannot honour, EngineStartFailed without vllm."""
    from runner.engines.process import ProcessEngine
    from runner.engines.vllm.connector import CoreSpawner
    from runner.engines.vllm.environment import ENVIRONMENT
    from runner.engines.vllm.settings import read_settings

    settings = read_settings(spec)
    connector = CoreSpawner(spec, settings, ENVIRONMENT.require(spec.options.engine_python))
    return ProcessEngine(spec, "", connector=connector, kill_after_s=_KILL_AFTER_S)


def describe_command(spec: EngineSpec) -> list[str]:
    """For --dry-run: the environment variables and the command that would start the engine. Starts nothing."""
    from runner.engines.vllm.environment import ENVIRONMENT
    from runner.engines.vllm.settings import read_settings

    settings = read_settings(spec)
    python = ENVIRONMENT.find(spec.options.engine_python) or "python"
    variables = [f"{name}={value}" for name, value in settings.env.items()]
    return [*variables, python, "-m", "runner.engines.vllm.worker", *settings.arguments]
