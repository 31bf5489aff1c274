"""Batch: one step as tensors on the device. Made from a StepPlan; knows no model and no cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.engines.native.plan import StepPlan


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

        def tensor(array: Any, dtype: Any) -> Tensor:
            host = torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
            if device.type == "cuda":
                return host.pin_memory().to(device, non_blocking=True)
            return host

        return cls(
            token_ids=tensor(plan.token_ids, np.int64),
            positions=tensor(plan.positions, np.int64),
            slots=tensor(plan.slots, np.int64),
            query_starts=tensor(plan.query_starts, np.int32),
            context_lens=tensor(plan.context_lens, np.int32),
            block_tables=tensor(plan.block_tables, np.int32),
            sample_rows=tensor(plan.sample_rows, np.int64),
            max_query_len=int(np.diff(plan.query_starts).max(initial=0)),
            plan=plan,
        )
