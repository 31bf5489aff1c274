"""out=llamacpp: GGUF models through llama.cpp, in a child process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.engines.base import Engine, EngineSpec

CHILD = "runner.engines.llamacpp.engine:LlamaCppEngine"
_KILL_AFTER_S = 600.0
"""A step cannot report in between, and a large model's prompt chunk takes long on a slow CPU."""


def make_engine(spec: EngineSpec) -> Engine:
    """The parent's side. Raises UsageError for options that out=llamacpp cannot honour."""
    # Imported here, so that asking where the library lies (doctor, engines, tests) loads nothing else.
    from runner.engines.llamacpp.settings import check_spec
    from runner.engines.process import ProcessEngine

    check_spec(spec)
    return ProcessEngine(spec, CHILD, kill_after_s=_KILL_AFTER_S)
