"""Place: where a run measures (a GPU, or a CPU with the interpreter for a dry run), its clock and its speed limits."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

GIB = 1 << 30


@dataclass
class Place:
    """`limits` are measured once: bytes/s of a copy, of reading, and FLOP/s of a product."""

    device: str
    dtype: torch.dtype
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def is_toy(self) -> bool:
        """A dry run: sizes are small and numbers mean nothing."""
        return self.device == "cpu"

    def synchronize(self) -> None:
        """Wait for the device."""
        if not self.is_toy:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], repeats: int = 20, warm_ups: int = 3) -> float:
        """Time of one call, the median of five batches; the host's cost hides behind the device's where it can."""
        if self.is_toy:
            repeats, warm_ups = 1, 0
        for _ in range(warm_ups):
            run()
        times = []
        for _ in range(1 if self.is_toy else 5):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            self.synchronize()
            times.append((time.perf_counter() - start) / repeats)
        return sorted(times)[len(times) // 2]

    def replay(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """`run` as a CUDA graph, so that a small kernel's launch is not what is measured."""
        if self.is_toy:
            return run
        from runner.engines.native.graphs import CudaCapture

        return CudaCapture(torch.device(self.device))(run)

    def empty(self) -> None:
        """Give freed memory back."""
        if not self.is_toy:
            torch.cuda.empty_cache()


def make_place(is_toy: bool) -> Place:
    """The GPU; raises SystemExit where there is none and no dry run was asked for."""
    if is_toy:
        return Place("cpu", torch.float32)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: torch finds no CUDA device; --dry-run tries everything out at toy size")
    return Place("cuda", torch.bfloat16)


def describe(place: Place) -> dict[str, Any]:
    """Machine and versions."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("triton", "transformers", "numpy"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = None
    if place.is_toy:
        return {"device": f"{platform.machine()} CPU (dry run)", **versions}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / GIB, 1),
        "multiprocessors": properties.multi_processor_count,
        **versions,
    }


def measure_limits(place: Place) -> dict[str, Any]:
    """What this card does at best in this call: bytes that a copy moves, bytes that a sum reads, products in bf16."""
    copy, read = _byte_rates(place, (1 << 16) if place.is_toy else 2 * GIB)
    place.empty()
    rate = max(_matmul_rate(place, size) for size in ((64,) if place.is_toy else (4096, 8192)))
    place.limits.update({"copy_bytes_per_s": copy, "read_bytes_per_s": read, "matmul_flops_per_s": rate})
    return {"copy_tb_s": copy / 1e12, "read_tb_s": read / 1e12, "bf16_matmul_tflops": rate / 1e12}


def _byte_rates(place: Place, num: int) -> tuple[float, float]:
    """Of a copy (bytes read and written), and of a sum."""
    source = torch.zeros(num, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    copy_s = place.seconds(lambda: target.copy_(source), repeats=10)
    return 2 * num / copy_s, num / place.seconds(source.view(torch.int64).sum, repeats=10)


def _matmul_rate(place: Place, size: int) -> float:
    left: Tensor = torch.randn(size, size, device=place.device).to(place.dtype)
    right = torch.randn(size, size, device=place.device).to(place.dtype)
    return 2 * size**3 / place.seconds(lambda: left @ right)
