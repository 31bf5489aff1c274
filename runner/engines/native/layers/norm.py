"""RMSNorm and LayerNorm, alone or joined with the addition of what comes before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.engines.native.kernels.torch_ops import OPS
from runner.engines.native.layers.linear import parameter
from runner.engines.native.parallel import Parallel, Span
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Fill


class Norm(nn.Module):
    """A weight, perhaps a bias, over this rank's `span` of the channels."""

    bias: nn.Parameter | None

    def __init__(self, source: str, span: Span, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.source, self.span, self.size, self.eps = source, span, span.length, eps
        self.weight, self.bias, self.ops = parameter(self.size, dtype=dtype), None, OPS

    def add(self, x: Tensor, delta: Tensor | None) -> Tensor:
        """x += delta in place; the norm of x."""
        out: Tensor = self(x if delta is None else x.add_(delta))
        return out

    def fills(self) -> Iterator[Fill]:
        """This rank's channels."""
        yield Fill(self.weight, self.source, "weight", (self.span,))
        if self.bias is not None:
            yield Fill(self.bias, self.source, "bias", (self.span,))


class RMSNorm(Norm):
    """x / rms(x) * weight; with `plus_one`, (1 + weight) kept in float32 (Gemma)."""

    def __init__(self, source: str, size: int, eps: float, dtype: torch.dtype, plus_one: bool = False) -> None:
        super().__init__(source, Span.whole(size), eps, torch.float32 if plus_one else dtype)
        self.plus_one = plus_one

    def forward(self, x: Tensor) -> Tensor:
        """[..., size], the same shape and dtype."""
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, delta: Tensor | None) -> Tensor:
        """As one operation."""
        return self.forward(x) if delta is None else self.ops.add_rms_norm(x, delta, self.weight, self.eps)

    def finish(self) -> None:
        """Called by the loader when the weight is there."""
        if self.plus_one:
            self.weight.add_(1.0)


class WideRMSNorm(Norm):
    """RMSNorm over the heads of all ranks (OLMo-2): this rank holds `span` of them; `copies` ranks hold each."""

    def __init__(
        self, source: str, span: Span, eps: float, dtype: torch.dtype, parallel: Parallel, copies: int = 1
    ) -> None:
        super().__init__(source, span, eps, dtype)
        self.parallel, self.copies = parallel, copies

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, size here]"""
        if self.parallel.size == 1:
            return self.ops.rms_norm(x, self.weight, self.eps)
        wide = x.float()
        squares = self.parallel.all_reduce(wide.square().sum(-1, keepdim=True)) / (self.copies * self.span.total)
        wide = wide * torch.rsqrt(squares + self.eps) * self.weight
        return wide.to(x.dtype)


class LayerNorm(Norm):
    """(x - mean) / deviation * weight (+ bias)."""

    def __init__(self, source: str, size: int, eps: float, dtype: torch.dtype, bias: bool) -> None:
        super().__init__(source, Span.whole(size), eps, dtype)
        self.bias = parameter(size, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., size], the same shape and dtype."""
        return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)


def make_norm(spec: DecoderSpec, source: str, dtype: torch.dtype) -> Norm:
    """A norm over hidden_size of the family's kind."""
    if spec.norm == "layer":
        return LayerNorm(source, spec.hidden_size, spec.norm_eps, dtype, spec.norm_bias)
    return RMSNorm(source, spec.hidden_size, spec.norm_eps, dtype, spec.norm_plus_one)
