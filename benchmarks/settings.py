"""What a run of the benchmarks was told: quick or full, where the rivals are, the model, threads.

Rivals come from the environment, never from known paths:

    LLAMA_SERVER, LLAMA_BENCH      the binaries of llama.cpp, of the same build as our library
    LLAMA_CPP_PYTHON               a Python that can run `-m llama_cpp.server` (fastapi, uvicorn, sse-starlette ...)
    LLAMA_CPP_PYTHON_SITE          put on its PYTHONPATH, if llama_cpp is not installed in that Python
    VLLM_PYTHON                    a Python with vLLM, for its API server's CPU per token
    VLLM_RS                        vLLM's Rust frontend, the program vllm-rs of its wheels from 0.33 on
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rivals:
    """Paths, or None where the rival is not here."""

    llama_server: str | None = None
    llama_bench: str | None = None
    llama_cpp_python: str | None = None
    llama_cpp_python_site: str | None = None
    vllm_python: str | None = None
    vllm_rs: str | None = None


@dataclass(frozen=True)
class Settings:
    """One run. `threads` is given to every engine alike; `soak_s` is the length of the soak."""

    is_quick: bool = False
    threads: int = 2
    repeats: int = 5
    soak_s: float = 1800.0
    folder: Path = Path("benchmarks/.cache")
    """Models and logs; not in git."""
    model: Path | None = None
    """Use this GGUF instead of the 134M random one."""
    rivals: Rivals = Rivals()

    @property
    def command(self) -> list[str]:
        """The product, as the Python of this run has it."""
        return [sys.executable, "-m", "runner"]


def read_rivals(environment: Mapping[str, str]) -> Rivals:
    """Rivals named by the environment. Raises SystemExit for a path that does not exist."""
    names = ("LLAMA_SERVER", "LLAMA_BENCH", "LLAMA_CPP_PYTHON", "LLAMA_CPP_PYTHON_SITE", "VLLM_PYTHON", "VLLM_RS")
    found = {name: environment.get(name) or None for name in names}
    for name, path in found.items():
        if path is not None and not Path(path).exists():
            raise SystemExit(f"{name}={path}: no such file")
    return Rivals(**{name.lower(): path for name, path in found.items()})


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def random_model(settings: Settings) -> Path:
    """The model of the speed rows: 134M parameters, q8_0, random weights; made once."""
    if settings.model is not None:
        return settings.model
    path = settings.folder / "random-134m.q8_0.gguf"
    if not path.exists():
        from benchmarks.models import make_random_llama_gguf

        settings.folder.mkdir(parents=True, exist_ok=True)
        print(f"making {path} ...", file=sys.stderr, flush=True)
        partial = path.with_suffix(".partial")
        make_random_llama_gguf(partial)
        partial.rename(path)
    return path
