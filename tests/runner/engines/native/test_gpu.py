"""The Triton kernels and the CUDA graphs on a GPU; skipped where there is none. benchmarks.gpu runs these too."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.runner.engines.native.graph_cases import decode_differences  # noqa: E402
from tests.runner.engines.native.kernel_cases import CASES, Place, run_case  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_kernel(name: str, dtype: torch.dtype) -> None:
    """The kernel's numbers are torch's."""
    assert run_case(name, Place("cuda", dtype)) is None


def test_graphs() -> None:
    """Steps through captured graphs give the ids of the torch backend, in float32."""
    assert decode_differences("cuda", is_captured=True) == []
