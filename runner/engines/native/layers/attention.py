"""Attention: scores and values of one layer over the paged cache. Knows no projections (block.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runner.engines.native.kernels.ops import HeadNorms, Rotation
from runner.engines.native.kernels.torch_attention import Scores, plain_attention
from runner.engines.native.kernels.torch_ops import OPS
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.cache import LayerCache


class Attention(nn.Module):
    """Head counts are this rank's. `cache` is bound by the executor; without one (the memory profile) each sequence
    attends to this step's tokens only."""

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        alibi_slopes: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.scale, self.window, self.softcap = scale, window, softcap
        self.slopes = tuple(alibi_slopes) if alibi_slopes else None
        self.alibi_slopes: Tensor | None = None
        self.cache: LayerCache | None = None
        self.ops = OPS

    def forward(self, q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
        """q [tokens, heads, head_dim], k, v [tokens, kv_heads, head_dim], turned -> [tokens, heads * head_dim]."""
        if self.cache is not None:
            self.ops.write_cache(k, v, self.cache, batch.slots)
        return self._attend(q, k, v, batch)

    def fused(self, qkv: Tensor, norms: HeadNorms | None, rotation: Rotation | None, batch: Batch) -> Tensor:
        """The same from one projection [tokens, heads + 2 kv_heads, head_dim], which is overwritten."""
        self.ops.rope_write(qkv, self.num_heads, norms, rotation, self.cache, batch.slots)
        keys, values = self.num_heads, self.num_heads + self.num_kv_heads
        q, k, v = qkv[:, :keys], qkv[:, keys:values], qkv[:, values:]
        return self._attend(q, k, v, batch)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
        scores = Scores(self.scale, self.window, self.softcap, self._slopes(q.device))
        if self.cache is None:
            out = plain_attention(q, k, v, batch, scores)
        else:
            out = self.ops.paged_attention(q, self.cache, batch, **scores._asdict())
        return out.view(len(q), -1)

    def _slopes(self, device: torch.device) -> Tensor | None:
        """float32 [heads]; made on first use, because a model is built without memory."""
        if self.slopes is not None and self.alibi_slopes is None:
            self.alibi_slopes = torch.tensor(self.slopes, device=device)
        return self.alibi_slopes
