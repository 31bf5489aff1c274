"""Compiles the Triton kernels for an H100 (sm_90) on a machine without a GPU: what the interpreter cannot show.

    python -m tests.runner.engines.native.kernel_compiler [NAME ...]    one JSON line a compiled kernel

Runs the cases with a driver that only names the target; nothing is launched. Says registers, spills and shared memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

SHARED_LIMIT = 227 * 1024
"""Of a block on an H100, in bytes."""


class H100:
    """As much of a driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        """Compute capability 9.0."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """None."""
        return 0


class Compiled:
    """Collects what JITFunction.run compiles, by kernel and specialisation."""

    def __init__(self) -> None:
        self.kernels: dict[str, Any] = {}
        driver.set_active(H100())  # type: ignore[arg-type]
        run = JITFunction.run

        def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            kernel = run(function, *args, grid=grid, warmup=True, **options)
            self.kernels.setdefault(kernel.hash, kernel)
            return kernel

        JITFunction.run = compile_only


def describe(kernel: Any) -> dict[str, Any]:
    """Name, shared memory, and what ptxas says of registers and spills."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    ptx = kernel.asm["ptx"]
    return {
        "kernel": kernel.metadata.name, "warps": kernel.metadata.num_warps, "shared": kernel.metadata.shared,
        "registers": int(usage.get("REG", 0)), "stack": int(usage.get("STACK", 0)) + int(usage.get("LOCAL", 0)),
        "wgmma": "wgmma.mma_async" in ptx, "async_copies": ptx.count("cp.async.c"),
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4", ptx)),
    }  # fmt: skip


def compile_cases(names: list[str], dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, Any]]:
    """A record for each kernel that a case compiles anew, or for a case that cannot be compiled."""
    from tests.runner.engines.native.kernel_cases import Place, run_case

    compiled = Compiled()
    for name in names:
        before, start = set(compiled.kernels), time.perf_counter()
        try:
            run_case(name, Place("cpu", dtype, is_checked=False))
        except Exception as error:
            yield {"case": name, "problem": f"{type(error).__name__}: {error}"}
            continue
        seconds = round(time.perf_counter() - start, 2)
        for key in compiled.kernels.keys() - before:
            record = describe(compiled.kernels[key])
            problem = "too much shared memory" if record["shared"] > SHARED_LIMIT else None
            yield {"case": name, "problem": problem, "seconds": seconds, **record}


def main() -> None:
    """All cases, or those named."""
    warnings.simplefilter("ignore")
    from tests.runner.engines.native.kernel_cases import CASES

    for record in compile_cases(sys.argv[1:] or list(CASES)):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
