"""out=trtllm: TensorRT-LLM's LLM API in a child process, under the Python of TensorRT-LLM's own environment.

This file is the launcher's side: it imports no tensorrt_llm. The child's side is engine.py; ranks are started by
TensorRT-LLM itself (MPI). `llmrun build-engine` is build_plan.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.engines.base import Engine, EngineSpec

CHILD = "runner.engines.trtllm.engine:make"
_KILL_AFTER_S = 600.0
"""Loading an engine blocks the loop."""


def make_engine(spec: EngineSpec) -> Engine:
    """The parent's side. Raises UsageError for what cannot be honoured, EngineStartFailed for the wrong version."""
    from runner.engines.process import ProcessEngine
    from runner.engines.trtllm.environment import ENVIRONMENT
    from runner.engines.trtllm.release import check_fit, installed_release
    from runner.engines.trtllm.settings import read_settings

    env = read_settings(spec).env
    python = ENVIRONMENT.require(spec.options.engine_python)
    release = installed_release(python)
    if release is not None:
        check_fit(release, spec.card)
    return ProcessEngine(spec, CHILD, shape="async", python=python, env=env, kill_after_s=_KILL_AFTER_S)


def describe_command(spec: EngineSpec) -> list[str]:
    """For --dry-run: environment variables, interpreter, and the arguments of TensorRT-LLM's LLM. Starts nothing."""
    from runner.engines.trtllm.environment import ENVIRONMENT
    from runner.engines.trtllm.settings import read_settings

    settings = read_settings(spec)
    python = ENVIRONMENT.find(spec.options.engine_python) or "python"
    named = {**settings.arguments, **({"kv_cache_config": settings.kv_cache} if settings.kv_cache else {})}
    arguments = ", ".join(f"{name}={value!r}" for name, value in named.items())
    variables = [f"{name}={value}" for name, value in settings.env.items()]
    return [*variables, python, "-m", "runner.engines.child", f"tensorrt_llm.LLM({arguments})"]
