"""Batch: one step as tensors on the device. Made from a StepPlan; knows no model and no cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runner.engines.native.plan import StepPlan

_INDICES = ("token_ids", "positions", "slots", "sample_rows")


@dataclass(frozen=True)
class Batch:
    """What modules read in a forward pass; layout as in plan.py."""

    token_ids: Tensor
    """[tokens] int64"""
    positions: Tensor
    """[tokens] int64"""
    slots: Tensor
    """[tokens] int64"""
    query_starts: Tensor
    """[sequences + 1] int32"""
    context_lens: Tensor
    """[sequences] int32"""
    block_tables: Tensor
    """[sequences, width] int32"""
    sample_rows: Tensor
    """[samples] int64"""
    max_query_len: int
    plan: StepPlan | None = None
    """The host's side; None inside CUDA graphs."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What a backend derives once a step and all layers share (masks, groups)."""

    @classmethod
    def from_plan(cls, plan: StepPlan, device: torch.device | str) -> Batch:
        """Copies the plan to the device; the copies of a CUDA device are asynchronous."""
        device = torch.device(device)
        arrays = {name: getattr(plan, name).astype(np.int64) for name in _INDICES}
        arrays |= {name: getattr(plan, name) for name in ("query_starts", "context_lens", "block_tables")}
        tensors: dict[str, Any] = {name: upload(array, device) for name, array in arrays.items()}
        return cls(**tensors, max_query_len=int(np.diff(plan.query_starts).max(initial=0)), plan=plan)


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """A small array on the device, without waiting for what the device is doing."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
