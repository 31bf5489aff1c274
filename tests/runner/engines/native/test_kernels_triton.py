"""The Triton kernels on the CPU: right in the interpreter, and compiled for an H100 without spills.

Both run in a process of their own, because triton looks at TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.runner.engines.native.kernel_cases import CASES

COMPILED = (
    "attend mixed", "attend window", "attend alibi", "attend int8", "attend head size 256", "decode split",
    "attend as Llama-3-8B", "attend as Gemma-2", "rope as Qwen3", "linear 1 row of 4096", "int8 1 row of 4096",
    "rope partial, norms", "rope int8", "write_cache", "rms_norm", "gate", "linear 1 row", "int8 1 row", "int8 5 rows",
    "int4 1 row, zeros", "int4 5 rows", "moe 23 tokens",
)  # fmt: skip
"""One case for each way through each kernel; `slow` compiles all."""


def _run(module: str, *names: str) -> list[Any]:
    """The records of a module of this folder, run as a program."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", f"tests.runner.engines.native.{module}", *names]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, Any]]:
    """What the interpreter says of every case."""
    return {record["case"]: record for record in _run("kernel_cases")}


@pytest.mark.parametrize("name", CASES)
def test_interpreter(name: str, interpreted: dict[str, dict[str, Any]]) -> None:
    """The kernel's numbers are torch's."""
    assert interpreted[name]["problem"] is None


def test_graphs_with_a_decoder() -> None:
    """Prompts, then padded decode steps, through a whole model: the torch backend's logits."""
    assert _run("graph_cases") == [[]]


def _check_compiled(names: tuple[str, ...]) -> None:
    records = _run("kernel_compiler", *names)
    assert len(records) >= len(names)
    bad = [record for record in records if record["problem"] is not None or record["stack"]]
    assert not bad, "cannot be compiled, or spills registers"


def test_compiles_for_h100() -> None:
    """What the interpreter takes and the compiler does not."""
    _check_compiled(COMPILED)


@pytest.mark.slow
def test_all_compile_for_h100() -> None:
    """Every case."""
    _check_compiled(tuple(CASES))
