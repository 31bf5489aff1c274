"""What vLLM's CPU build wants before its process begins: PyTorch's own libgomp, and the tcmalloc of its wheel.

vLLM sets LD_PRELOAD for the processes that it starts (vllm/platforms/cpu.py, check_and_update_config); our worker is
started by us, so we look in the same places. Reads names of files only; runs nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

_OPENMP = ("libgomp", "libomp", "libiomp")


def preloads(python: str, already: str) -> str | None:
    """LD_PRELOAD for the worker under `python`, of a virtual environment; None to leave it as it is (`already`)."""
    if not sys.platform.startswith("linux"):
        return None
    for site in sorted(Path(python).parent.parent.glob("lib/python3*/site-packages")):
        torch = site / "torch" / "lib"
        if not torch.is_dir() or (torch / "libtorch_cuda.so").exists():
            continue
        libraries = [] if "libtcmalloc" in already else _first(site / "vllm" / "libs", "libtcmalloc*.so*")
        libraries += [already] if already else []
        if not any(name in already for name in _OPENMP):
            libraries += _first(site / "torch.libs", "libgomp*.so*") or _first(torch, "libgomp*.so*")
        return ":".join(libraries) if libraries else None
    return None


def _first(folder: Path, pattern: str) -> list[str]:
    return [str(path) for path in sorted(folder.glob(pattern))[:1]]
