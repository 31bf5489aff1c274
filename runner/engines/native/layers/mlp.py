"""MLP: up, activation, down; with a gate where the family has one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runner.engines.native.kernels.torch_ops import ACTIVATIONS, OPS
from runner.engines.native.layers.linear import Linear, Part
from runner.engines.native.parallel import Parallel
from runner.engines.native.spec import DecoderSpec


class MLP(nn.Module):
    """`source` is `mlp` or `moe.shared`; `reduce=False` leaves the sum over ranks to the caller."""

    def __init__(
        self,
        spec: DecoderSpec,
        parallel: Parallel,
        dtype: torch.dtype,
        *,
        source: str = "mlp",
        size: int | None = None,
        reduce: bool = True,
    ) -> None:
        super().__init__()
        size = spec.intermediate_size if size is None else size
        rows = parallel.span(size, f"channels of the {source}")
        wanted = ("gate", "up") if spec.gated else ("up",)
        parts = [Part(f"{source}.{name}", rows) for name in wanted]
        self.activation, self.is_gated = spec.activation, spec.gated
        self.up = Linear(spec.hidden_size, len(parts) * size, spec.mlp_bias, split="out", parallel=parallel,
                         parts=parts, dtype=dtype)  # fmt: skip
        self.down = Linear(size, spec.hidden_size, spec.mlp_bias, split="in", parallel=parallel,
                           parts=f"{source}.down", dtype=dtype, reduce=reduce)  # fmt: skip
        self.ops = OPS

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden]"""
        up = self.up(x)
        hidden = self.ops.gate(up, self.activation) if self.is_gated else ACTIVATIONS[self.activation](up)
        out: Tensor = self.down(hidden)
        return out
