"""preload.py on folders laid out as vLLM's environments are."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.engines.vllm.preload import preloads


def environment(root: Path, *files: str) -> tuple[str, Path]:
    """The interpreter's path and its site-packages."""
    site = root / "lib" / "python3.11" / "site-packages"
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).touch()
    return str(root / "bin" / "python"), site


def test_openmp_of_torch_and_tcmalloc_of_vllm(tmp_path: Path) -> None:
    gomp, malloc = "torch/lib/libgomp.so.1", "vllm/libs/libtcmalloc_minimal.so.4"
    python, site = environment(tmp_path, gomp, malloc)
    assert preloads(python, "") == f"{site / malloc}:{site / gomp}"
    assert preloads(python, "/mine.so") == f"{site / malloc}:/mine.so:{site / gomp}"
    assert preloads(python, "/opt/libiomp5.so:/opt/libtcmalloc.so") == "/opt/libiomp5.so:/opt/libtcmalloc.so"


def test_torch_libs_come_first(tmp_path: Path) -> None:
    python, site = environment(tmp_path, "torch/lib/libgomp.so.1", "torch.libs/libgomp-a1.so.1.0.0")
    assert preloads(python, "") == str(site / "torch.libs/libgomp-a1.so.1.0.0")


@pytest.mark.parametrize(
    "files", [(), ("torch/lib/libgomp.so.1", "torch/lib/libtorch_cuda.so"), ("torch/lib/libc10.so",)]
)
def test_none_for_a_gpu_or_where_nothing_is_known(tmp_path: Path, files: tuple[str, ...]) -> None:
    assert preloads(environment(tmp_path, *files)[0], "") is None
