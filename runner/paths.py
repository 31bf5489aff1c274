"""Where llmrun keeps its own files. LLMRUN_HOME puts all of them under one folder (tests do that)."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def _base(kind: str) -> Path:
    home = os.environ.get("LLMRUN_HOME")
    if home:
        return Path(home) / kind
    return Path(getattr(platformdirs, f"user_{kind}_dir")("llmrun"))


def engines_dir() -> Path:
    """Installed engine libraries and environments, one folder an engine."""
    return _base("data") / "engines"


def log_dir() -> Path:
    """Log files of engine processes."""
    return _base("state") / "logs"


def state_dir() -> Path:
    """What is remembered between runs: line history, results of smoke tests."""
    return _base("state")


def cache_dir() -> Path:
    """What can be thrown away."""
    return _base("cache")
