"""out=llamacpp: GGUF models through llama.cpp, in a child process."""

from __future__ import annotations

from runner.engines.base import Engine, EngineSpec
from runner.engines.process import ProcessEngine

CHILD = "runner.engines.llamacpp.engine:LlamaCppEngine"
_KILL_AFTER_S = 600.0
"""A step cannot report in between, and a large model's prompt chunk takes long on a slow CPU."""


def make_engine(spec: EngineSpec) -> Engine:
    """The parent's side. Raises UsageError for options that out=llamacpp cannot honour."""
    from runner.engines.llamacpp.settings import check_spec

    check_spec(spec)
    return ProcessEngine(spec, CHILD, kill_after_s=_KILL_AFTER_S)
