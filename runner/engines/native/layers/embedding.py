"""Token embedding, learned positions and the head, split over ranks by vocabulary."""

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


class Embedding(nn.Module):
    """[tokens] -> [tokens, hidden]; each rank looks up its own ids and the ranks add up."""

    def __init__(self, spec: DecoderSpec, parallel: Parallel, dtype: torch.dtype) -> None:
        super().__init__()
        self.parallel, self.hidden_size = parallel, spec.hidden_size
        self.span = parallel.vocab_span(spec.vocab_size)
        self.weight = parameter(parallel.vocab_share(spec.vocab_size), spec.hidden_size, dtype=dtype)

    def forward(self, token_ids: Tensor) -> Tensor:
        """[tokens, hidden] on every rank."""
        if self.parallel.size == 1:
            return self.look_up(token_ids)
        local = token_ids - self.span.start
        is_here = (local >= 0) & (local < self.span.length)
        found = self.look_up(local.clamp(0, max(0, self.span.length - 1)))
        return self.parallel.all_reduce(found * is_here.unsqueeze(1))

    def look_up(self, rows: Tensor) -> Tensor:
        """Some of this rank's rows; a quantised embedding has its own way."""
        return F.embedding(rows, self.weight)

    def fills(self) -> Iterator[Fill]:
        """This rank's ids; padding stays as it is and is never looked up."""
        self.weight[self.span.length :].zero_()
        yield Fill(self.weight[: self.span.length], "embed", "weight", (self.span, Span.whole(self.hidden_size)))


class PositionEmbedding(nn.Module):
    """Learned positions, whole on every rank."""

    def __init__(self, spec: DecoderSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.offset = spec.position_offset
        self.weight = parameter(spec.max_position + self.offset, spec.hidden_size, dtype=dtype)

    def forward(self, positions: Tensor) -> Tensor:
        """[tokens, hidden]"""
        return F.embedding(positions + self.offset if self.offset else positions, self.weight)

    def fills(self) -> Iterator[Fill]:
        """All rows."""
        yield Fill(self.weight, "position", "weight", tuple(Span.whole(size) for size in self.weight.shape))


class Head(nn.Module):
    """Hidden states -> logits, on every rank. `tied` shares the embedding's weight."""

    bias: nn.Parameter | None

    def __init__(self, spec: DecoderSpec, parallel: Parallel, dtype: torch.dtype, tied: Embedding | None) -> None:
        super().__init__()
        self.spec, self.parallel = spec, parallel
        self.span = parallel.vocab_span(spec.vocab_size)
        share = parallel.vocab_share(spec.vocab_size)
        self._tied = [tied] if tied is not None else []  # in a list: not a submodule of two parents
        self.weight = None if tied is not None else parameter(share, spec.hidden_size, dtype=dtype)
        self.bias = parameter(share, dtype=dtype) if spec.head_bias else None
        self.ops = OPS

    def forward(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab] float32."""
        logits = self.parallel.all_gather(self.project(hidden))[:, : self.spec.vocab_size].float()
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        if self.spec.logit_softcap is not None:
            logits = torch.tanh(logits / self.spec.logit_softcap) * self.spec.logit_softcap
        return logits

    def project(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocabulary here]; a quantised head has its own way."""
        weight = self._tied[0].weight if self.weight is None else self.weight
        return self.ops.linear(hidden, weight, self.bias)

    def fills(self) -> Iterator[Fill]:
        """This rank's ids."""
        for kind, value in (("weight", self.weight), ("bias", self.bias)):
            if value is not None:
                value[self.span.length :].zero_()
                spans = (self.span, Span.whole(self.spec.hidden_size))[: value.dim()]
                yield Fill(value[: self.span.length], "head", kind, spans)  # type: ignore[arg-type]

    def finish(self) -> None:
        """Rows of unit length where the family wants them (Baichuan2)."""
        if self.spec.normalized_head and self.weight is not None:
            self.weight.copy_(F.normalize(self.weight.float()))
