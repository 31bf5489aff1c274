"""Linear: a projection, whole or split over ranks; its weight may be several checkpoint tensors joined by rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from runner.engines.native.kernels.torch_ops import OPS
from runner.engines.native.parallel import Parallel, Span
from runner.engines.native.weights import Fill


@dataclass(frozen=True)
class Part:
    """Rows of a Linear that are this rank's `rows` of one canonical weight."""

    source: str
    rows: Span


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter without memory; the loader gives it some."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


class Linear(nn.Module):
    """y = x W^T + b. split="out": rows of W are split over ranks and the result is this rank's part; split="in":
    columns are split and the result is summed over ranks. weight [rows here, columns here]."""

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        split: Literal["out", "in"] | None = None,
        parallel: Parallel,
        parts: Sequence[Part] | str,
        dtype: torch.dtype,
        reduce: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(parts, str):
            whole = Span.whole(out_features)
            parts = [Part(parts, parallel.span(out_features, f"rows of {parts}") if split == "out" else whole)]
        self.parts = tuple(parts)
        self.columns = (
            parallel.span(in_features, f"columns of {self.parts[0].source}")
            if split == "in"
            else Span.whole(in_features)
        )
        self.sums_over = parallel if split == "in" and reduce and parallel.size > 1 else None
        rows = sum(part.rows.length for part in self.parts)
        self.weight = parameter(rows, self.columns.length, dtype=dtype)
        # the ranks' results are added, so one of them adds the bias
        has_bias = bias and (split != "in" or parallel.rank == 0)
        self.bias = parameter(rows, dtype=dtype) if has_bias else None
        self.ops = OPS

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]"""
        y = self.ops.linear(x, self.weight, self.bias)
        return y if self.sums_over is None else self.sums_over.all_reduce(y)

    def fills(self) -> Iterator[Fill]:
        """Each part's rows."""
        start = 0
        for part in self.parts:
            here = slice(start, start + part.rows.length)
            yield Fill(self.weight[here], part.source, "weight", (part.rows, self.columns))
            if self.bias is not None:
                yield Fill(self.bias[here], part.source, "bias", (part.rows,))
            start += part.rows.length
