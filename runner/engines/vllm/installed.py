"""Reading an installed vLLM's source, without importing it, for headless mode: the wire structs' field names, and
whether a fault of it must be kept from happening.

Only for `vllm serve --headless`, whose processes are vLLM's own.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from runner.errors import EngineStartFailed

_STRUCTS = {
    "EngineCoreRequest": "v1/engine/__init__.py",
    "EngineCoreOutputs": "v1/engine/__init__.py",
    "EngineCoreOutput": "v1/engine/__init__.py",
    "LoRARequest": "lora/request.py",
    "PoolingParams": "pooling_params.py",
}
_FIND = "import importlib.util as u; s = u.find_spec('vllm'); print(s.origin if s else '')"


def find_package(python: str) -> Path:
    """The folder of the package vllm that `python` would import. Raises EngineStartFailed."""
    try:
        done = subprocess.run([python, "-c", _FIND], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineStartFailed(f"{python} cannot be run: {error}", hint="name another --engine-python") from None
    origin = done.stdout.strip()
    if not origin:
        raise EngineStartFailed(f"{python} has no vllm", hint="llmrun engines install vllm")
    return Path(origin).parent


def read_structs(package: Path) -> dict[str, list[str]]:
    """Field names in wire order, by struct. Raises EngineStartFailed for a vLLM that is laid out differently."""
    return {name: _fields(package / file, name) for name, file in _STRUCTS.items()}


def is_cpu_build(package: Path) -> bool:
    """By vLLM's own rule (vllm/platforms/__init__.py): its version has the word, or this is a Mac."""
    builds = package.parent.glob("vllm*.dist-info")
    is_told = os.environ.get("VLLM_TARGET_DEVICE") == "cpu" or any("cpu" in build.name for build in builds)
    return is_told or sys.platform == "darwin"


def takes_back_draws(package: Path) -> bool:
    """Whether its worker sets a generator back where a prompt is read in pieces, which a CPU's generator cannot."""
    try:
        return ".set_offset(" in (package / "v1/worker/gpu_model_runner.py").read_text(encoding="utf-8")
    except OSError:
        return False


def _fields(path: Path, struct: str) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        raise EngineStartFailed(f"{struct} of this vLLM cannot be read from {path}: {error}") from None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == struct:
            return [
                part.target.id
                for part in node.body
                if isinstance(part, ast.AnnAssign)
                and isinstance(part.target, ast.Name)
                and "ClassVar" not in ast.unparse(part.annotation)
            ]
    raise EngineStartFailed(
        f"this vLLM has no {struct} in {path}; --vllm-mode headless knows 0.17 to 0.33", hint="leave --vllm-mode out"
    )
