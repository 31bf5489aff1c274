"""Which Python runs out=native: one that has torch. Looks for files only; imports nothing of it.

Search order: LLMRUN_NATIVE_PYTHON; what `llmrun engines install native` made; the launcher's own Python where torch is
installed there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from runner import paths
from runner.errors import EngineStartFailed

PYTHON_VARIABLE = "LLMRUN_NATIVE_PYTHON"
INSTALL_HINT = "llmrun engines install native"
NEEDED = ("torch", "safetensors", "msgspec", "numpy")


def installed_dir() -> Path:
    """The folder that `llmrun engines install native` fills: a virtual environment."""
    return paths.engines_dir() / "native"


def find_python() -> str | None:
    """The interpreter to use, or None. Raises EngineStartFailed when LLMRUN_NATIVE_PYTHON names no file."""
    chosen = os.environ.get(PYTHON_VARIABLE)
    if chosen:
        if not Path(chosen).expanduser().is_file():
            raise EngineStartFailed(
                f"{PYTHON_VARIABLE}={chosen}: there is no such file", hint=f"unset {PYTHON_VARIABLE}"
            )
        return str(Path(chosen).expanduser())
    installed = python_in(installed_dir())
    if installed is not None:
        return str(installed)
    return sys.executable if all(importlib.util.find_spec(name) is not None for name in NEEDED) else None


def require_python() -> str:
    """As find_python; raises EngineStartFailed when there is none."""
    python = find_python()
    if python is None:
        raise EngineStartFailed(
            f"out=native needs PyTorch, which is not installed; run: {INSTALL_HINT}", hint=INSTALL_HINT
        )
    return python


def python_in(folder: Path) -> Path | None:
    """The interpreter of a virtual environment."""
    for name in ("bin/python", "Scripts/python.exe"):
        if (folder / name).exists():
            return folder / name
    return None
