"""Made by llmrun: lets a torchvision that was built for CUDA be imported beside a torch that was built for the CPU.

Its library of operators cannot be loaded then, and its import dies at the first operator that it describes
(`operator torchvision::nms does not exist`). This hook, loaded by a .pth file in every process, says what those
operators look like just before torchvision is imported. Calling one is still an error.
"""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))

_kept: list[Any] = []
"""The operators live as long as their library object does."""


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Finds nothing; acts once, before the real finders look for torchvision."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """See importlib."""
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        if not hasattr(torch.ops.torchvision, "nms"):
            library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            for schema in _SCHEMAS:
                library.define(schema)
            _kept.append(library)


sys.meta_path.insert(0, _TorchvisionFinder())
