"""MoE: a router, experts in two stacked weights, and perhaps an expert that every token uses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.engines.native.kernels.torch_ops import OPS
from runner.engines.native.layers.linear import Linear, parameter
from runner.engines.native.layers.mlp import MLP
from runner.engines.native.parallel import Parallel, Span
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Fill


class Experts(nn.Module):
    """gate_up [experts, 2 * size here, hidden], down [experts, hidden, size here]; ranks split each expert."""

    def __init__(self, spec: DecoderSpec, parallel: Parallel, dtype: torch.dtype) -> None:
        super().__init__()
        assert spec.moe is not None
        self.rows, self.hidden = parallel.span(spec.moe.intermediate_size, "channels of an expert"), spec.hidden_size
        size, num = self.rows.length, spec.moe.num_experts
        self.gate_up = parameter(num, 2 * size, spec.hidden_size, dtype=dtype)
        self.down = parameter(num, spec.hidden_size, size, dtype=dtype)
        self.activation = spec.activation
        self.ops = OPS

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """x [tokens, hidden], the chosen experts of each token and their weights -> [tokens, hidden]"""
        return self.ops.moe(x, ids, weights, self.gate_up, self.down, self.activation)

    def fills(self) -> Iterator[Fill]:
        """Every expert's three weights."""
        hidden, size = Span.whole(self.hidden), self.rows.length
        for expert in range(len(self.gate_up)):
            up = self.gate_up[expert]
            yield Fill(up[:size], "moe.experts.gate", "weight", (self.rows, hidden), expert)
            yield Fill(up[size:], "moe.experts.up", "weight", (self.rows, hidden), expert)
            yield Fill(self.down[expert], "moe.experts.down", "weight", (hidden, self.rows), expert)


class MoE(nn.Module):
    """In the place of an MLP."""

    def __init__(self, spec: DecoderSpec, parallel: Parallel, dtype: torch.dtype) -> None:
        super().__init__()
        moe = spec.moe
        assert moe is not None
        self.moe, self.parallel = moe, parallel

        def linear(rows: int, source: str) -> Linear:
            return Linear(spec.hidden_size, rows, parallel=parallel, parts=source, dtype=dtype)

        self.router = linear(moe.num_experts, "moe.router")
        self.experts = Experts(spec, parallel, dtype)
        size = moe.shared_intermediate_size
        self.shared = MLP(spec, parallel, dtype, source="moe.shared", size=size, reduce=False) if size else None
        self.shared_gate = linear(1, "moe.shared_gate") if moe.shared_gate else None

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden]"""
        weights, ids = self.router(x).float().softmax(-1).topk(self.moe.top_k, -1)
        if self.moe.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        out: Tensor = self.experts(x, ids, weights)
        if self.shared is not None:
            shared = self.shared(x)
            out = out + (shared if self.shared_gate is None else F.sigmoid(self.shared_gate(x)) * shared)
        return self.parallel.all_reduce(out)
