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


def describe_command(spec: EngineSpec) -> list[str]:
    """For --dry-run: the child and llama.cpp's own parameters. Raises UsageError as make_engine does."""
    import sys

    from runner.engines.child_command import changed, child_command
    from runner.engines.llamacpp.settings import check_spec

    options = spec.options
    ours = {
        "model": spec.card.path,
        "n_ctx": options.context_length,
        "n_seq_max": options.max_running,
        "n_threads": options.threads,
        "n_gpu_layers": options.gpu_layers,
        "main_gpu": options.base_gpu_id or None,
        "lora": options.adapters or None,
        "seed": options.seed,
    }
    return child_command(sys.executable, CHILD, {**ours, **changed(check_spec(spec))})
