"""out=vllm: vLLM's EngineCore, run by our worker in vLLM's own environment. The launcher's side imports no vllm.

The worker (worker.py, child side) guards EngineCore and reports its wire structs; the launcher (connector.py, link.py)
speaks EngineCore's ZeroMQ protocol. Life, restarts and health are ProcessEngine's. Further machines run follower.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.engines.base import Engine, EngineSpec

FOLLOWER = "runner.engines.vllm.follower:make"
_KILL_AFTER_S = 600.0
"""A step cannot report in between; the first one may compile kernels."""


def make_engine(spec: EngineSpec) -> Engine:
    """The parent's side. Raises UsageError for options that it cannot honour, EngineStartFailed without vllm."""
    from runner.engines.process import ProcessEngine
    from runner.engines.replicas import Replicas
    from runner.engines.vllm.connector import CoreSpawner
    from runner.engines.vllm.environment import ENVIRONMENT
    from runner.engines.vllm.headless import HeadlessSpawner
    from runner.engines.vllm.settings import read_settings

    python = ENVIRONMENT.require(spec.options.engine_python)
    if spec.card.kind == "gguf":
        _require_gguf(python)
    if spec.options.node_rank:
        env = read_settings(spec).env
        return ProcessEngine(spec, FOLLOWER, shape="async", python=python, env=env, kill_after_s=_KILL_AFTER_S)
    spawner = HeadlessSpawner if spec.options.vllm_mode == "headless" else CoreSpawner
    engines = [
        ProcessEngine(one, "", connector=spawner(one, read_settings(one), python), kill_after_s=_KILL_AFTER_S)
        for one in _replicas(spec)
    ]
    return engines[0] if len(engines) == 1 else Replicas(engines)


def _require_gguf(python: str) -> None:
    """Raises EngineStartFailed where the environment (if it is one) lacks the package that reads GGUF files."""
    from pathlib import Path

    import msgspec

    from runner.engines.pins import GGUF
    from runner.engines.vllm.environment import ENVIRONMENT
    from runner.errors import EngineStartFailed

    folder = Path(python).parent.parent
    reader = msgspec.structs.replace(ENVIRONMENT, packages=("gguf",))
    if ENVIRONMENT.is_in(folder) and not reader.is_in(folder):
        raise EngineStartFailed(
            f"out=vllm reads GGUF files by the package gguf, which {folder} lacks: {python} -m pip install "
            f"{GGUF.requirement()} (`llmrun engines install vllm` puts it there)",
            hint="out=llamacpp and out=native run this file without it",
        )


def _replicas(spec: EngineSpec) -> list[EngineSpec]:
    """One engine each, on GPUs of its own; what may wait is shared out."""
    import msgspec

    options, count = spec.options, spec.options.data_parallel_size
    queue = None if options.max_queue is None else -(-options.max_queue // count)
    return [
        msgspec.structs.replace(
            spec,
            options=msgspec.structs.replace(
                options, base_gpu_id=options.base_gpu_id + at * options.tensor_parallel_size, max_queue=queue
            ),
        )
        for at in range(count)
    ]


def describe_command(spec: EngineSpec) -> list[str]:
    """For --dry-run: the environment variables and the command that would start the engine. Starts nothing."""
    from runner.engines.vllm.environment import ENVIRONMENT
    from runner.engines.vllm.headless import guarded, headless_command
    from runner.engines.vllm.settings import read_settings

    settings = read_settings(spec)
    python = ENVIRONMENT.find(spec.options.engine_python) or "python"
    variables = [f"{name}={value}" for name, value in settings.env.items()]
    if spec.options.vllm_mode == "headless":
        return [*variables, *guarded(str(python), headless_command(settings.arguments, "PORT"))]
    module = "follower" if spec.options.node_rank else "worker"
    return [*variables, str(python), "-m", f"runner.engines.vllm.{module}", *settings.arguments]
