"""Made by llmrun: a `sgl_kernel` without kernels, for SGLang on plain PyTorch.

SGLang imports dozens of names from it wherever it runs on a CPU; each exists here and says what it is when it is
called. The operator `torch.ops.sgl_kernel.convert_weight_packed` is left out on purpose: by it SGLang knows that the
real kernels are there, and without it every layer takes its `forward_native`.
"""

from __future__ import annotations

import sys
import types
from typing import Any, NoReturn

__version__ = "0.4.10"
_SUBMODULES = ("mamba", "kvcacheio", "flash_attn", "utils")


def _missing(name: str) -> Any:
    def op(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"sgl_kernel.{name}: this environment has no CPU kernels (llmrun engines install sglang --cpu)"
        )

    op.__name__ = name
    return op


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _missing(name)


def assign_req_to_token_pool_cpu(
    req_pool_indices: Any, req_to_token: Any, start: Any, end: Any, out_cache_loc: Any, *rest: Any
) -> None:
    """Write each request's new cache places [tokens] into its row of `req_to_token` [requests, context]."""
    first = 0
    for at, row in enumerate(req_pool_indices.tolist()):
        begin, stop = int(start[at]), int(end[at])
        places = out_cache_loc[first : first + stop - begin]
        req_to_token[row, begin:stop] = places.to(req_to_token.dtype)
        first += stop - begin


class _ScalarTypes:
    """`scalar_types.uint4b8` and the like: their names."""

    def __getattr__(self, name: str) -> str:
        return name


def _add_submodule(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(f"{__name__}.{name}")
    module.__dict__.update(content, __getattr__=__getattr__)
    sys.modules[module.__name__] = module
    return module


for _name in _SUBMODULES:
    globals()[_name] = _add_submodule(_name)
scalar_type = _add_submodule("scalar_type", scalar_types=_ScalarTypes(), ScalarType=str)
