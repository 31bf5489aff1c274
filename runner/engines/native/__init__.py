"""out=native: our own engine on PyTorch, in a child process. This file is the launcher's side: it imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.engines.base import Engine, EngineSpec

CHILD = "runner.engines.native.engine:NativeEngine"
FOLLOWER = "runner.engines.native.follower:FollowerEngine"
_KILL_AFTER_S = 600.0
"""A step cannot report in between; the first one may compile kernels."""


def make_engine(spec: EngineSpec) -> Engine:
    """The parent's side. Raises UsageError for options that it cannot honour, EngineStartFailed without torch."""
    from runner.engines.native.environment import ENVIRONMENT
    from runner.engines.native.settings import read_settings
    from runner.engines.process import ProcessEngine

    read_settings(spec)
    child = FOLLOWER if spec.options.node_rank else CHILD
    return ProcessEngine(
        spec,
        child,
        python=ENVIRONMENT.require(spec.options.engine_python),
        kill_after_s=_KILL_AFTER_S,
        env=_ENVIRONMENT,
    )


def describe_command(spec: EngineSpec) -> list[str]:
    """For --dry-run: the child, its Python and settings. Raises UsageError as make_engine does."""
    from runner.engines.child_command import changed, child_command
    from runner.engines.native.environment import ENVIRONMENT
    from runner.engines.native.settings import read_settings

    options = spec.options
    where = {
        "model": spec.card.path,
        "context_length": options.context_length,
        "tensor_parallel_size": options.tensor_parallel_size if options.tensor_parallel_size > 1 else None,
        "num_nodes": options.num_nodes if options.num_nodes > 1 else None,
        "node_rank": options.node_rank if options.num_nodes > 1 else None,
        "leader_addr": options.leader_addr,
    }
    python = ENVIRONMENT.find(options.engine_python) or "python"
    child = FOLLOWER if options.node_rank else CHILD
    return child_command(python, child, {**where, **changed(read_settings(spec))})


_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "HF_HUB_OFFLINE": "1"}
