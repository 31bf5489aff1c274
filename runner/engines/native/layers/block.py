"""One layer of a Decoder: self-attention and MLP around the residual, in the five shapes of DecoderSpec.block.

A layer takes the residual x and what the layer before wants added to it (`delta`), so that each addition joins the norm
that follows; x is changed in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runner.engines.native.kernels.ops import HeadNorms, Rotation
from runner.engines.native.layers.attention import Attention
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.linear import Linear, Part
from runner.engines.native.layers.mlp import MLP
from runner.engines.native.layers.moe import MoE
from runner.engines.native.layers.norm import Norm, RMSNorm, WideRMSNorm, make_norm
from runner.engines.native.parallel import Parallel
from runner.engines.native.spec import DecoderSpec


class SelfAttention(nn.Module):
    """Projections and norms around Attention."""

    def __init__(self, spec: DecoderSpec, layer: int, parallel: Parallel, dtype: torch.dtype, reduce: bool) -> None:
        super().__init__()
        dim, clip = spec.head_dim, spec.clip_qkv
        heads, kv_heads = parallel.span(spec.num_heads, "attention heads"), parallel.kv_span(spec.num_kv_heads)
        parts = [
            Part("attn.q", heads.times(dim)),
            Part("attn.k", kv_heads.times(dim)),
            Part("attn.v", kv_heads.times(dim)),
        ]
        rows = (spec.num_heads + 2 * spec.num_kv_heads) * dim
        self.head_dim, self.clip = dim, clip
        self.qkv = Linear(spec.hidden_size, rows, spec.qkv_bias, split="out", parallel=parallel, parts=parts,
                          dtype=dtype)  # fmt: skip
        self.out = Linear(spec.num_heads * dim, spec.hidden_size, spec.out_bias, split="in", parallel=parallel,
                          parts="attn.out", dtype=dtype, reduce=reduce)  # fmt: skip
        slopes = spec.alibi_slopes[heads.start : heads.stop] if spec.position == "alibi" else None
        scale = dim**-0.5 if spec.scale is None else spec.scale
        self.attention = Attention(heads.length, kv_heads.length, dim, scale, spec.window(layer), spec.attn_softcap,
                                   slopes)  # fmt: skip
        self.q_norm: Norm | None = None
        self.k_norm: Norm | None = None
        if spec.qk_norm == "head":
            self.q_norm = RMSNorm("attn.q_norm", dim, spec.norm_eps, dtype, spec.norm_plus_one)
            self.k_norm = RMSNorm("attn.k_norm", dim, spec.norm_eps, dtype, spec.norm_plus_one)
        elif spec.qk_norm == "full":
            copies = max(1, parallel.size // spec.num_kv_heads)
            self.q_norm = WideRMSNorm("attn.q_norm", heads.times(dim), spec.norm_eps, dtype, parallel)
            self.k_norm = WideRMSNorm("attn.k_norm", kv_heads.times(dim), spec.norm_eps, dtype, parallel, copies)

    def forward(self, x: Tensor, rotation: Rotation | None, batch: Batch) -> Tensor:
        """[tokens, hidden], the same shape."""
        qkv = self.qkv(x)
        if self.clip is not None:
            qkv.clamp_(-self.clip, self.clip)
        norms = None
        if isinstance(self.q_norm, WideRMSNorm) and self.k_norm is not None:
            q, k, _ = qkv.split_with_sizes([self.q_norm.size, self.k_norm.size, self.k_norm.size], -1)
            q.copy_(self.q_norm(q))
            k.copy_(self.k_norm(k))
        elif self.q_norm is not None and self.k_norm is not None:
            norms = HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)
        heads = qkv.view(len(x), -1, self.head_dim)
        out: Tensor = self.out(self.attention.fused(heads, norms, rotation, batch))
        return out


class Layer(nn.Module):
    """Attention, MLP and norms of one layer."""

    def __init__(self, spec: DecoderSpec, layer: int, parallel: Parallel, dtype: torch.dtype) -> None:
        super().__init__()
        self.block, self.keeps_norm, self.scale = spec.block, spec.residual_post_norm, spec.residual_scale
        is_parallel = spec.block.startswith("parallel")
        has_experts = spec.moe is not None and layer not in spec.moe.dense_layers
        # a parallel layer's two sums over ranks are one
        self.parallel = parallel if is_parallel and not has_experts else None
        reduce = self.parallel is None
        self.attn = SelfAttention(spec, layer, parallel, dtype, reduce)
        self.mlp = MoE(spec, parallel, dtype) if has_experts else MLP(spec, parallel, dtype, reduce=reduce)
        self.norm1 = make_norm(spec, "norm1", dtype)
        self.norm2 = None if spec.block == "parallel" else make_norm(spec, "norm2", dtype)
        self.norm1_post = make_norm(spec, "norm1_post", dtype) if spec.block == "sandwich" else None
        self.norm2_post = make_norm(spec, "norm2_post", dtype) if spec.block == "sandwich" else None

    def forward(
        self, x: Tensor, delta: Tensor | None, rotation: Rotation | None, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The residual [tokens, hidden] and what is to be added to it."""
        if self.block == "post_norm":
            return self._post_norm(x, delta, rotation, batch)
        normed = self.norm1.add(x, delta)
        attended = self.attn(normed, rotation, batch)
        if self.norm2 is None:
            return x, self._joined(attended, self.mlp(normed))
        if self.block == "parallel_two_norms":
            return x, self._joined(attended, self.mlp(self.norm2(x)))
        if self.norm1_post is not None and self.norm2_post is not None:
            normed = self.norm2.add(x, self._scaled(self.norm1_post(attended)))
            return x, self._scaled(self.norm2_post(self.mlp(normed)))
        x = normed if self.keeps_norm else x
        normed = self.norm2.add(x, self._scaled(attended))
        return (normed if self.keeps_norm else x), self._scaled(self.mlp(normed))

    def _post_norm(
        self, x: Tensor, delta: Tensor | None, rotation: Rotation | None, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        assert self.norm2 is not None
        x = x if delta is None else x.add_(delta)
        x = x.add_(self._scaled(self.norm1(self.attn(x, rotation, batch))))
        return x, self._scaled(self.norm2(self.mlp(x)))

    def _scaled(self, delta: Tensor) -> Tensor:
        return delta if self.scale == 1.0 else delta.mul_(self.scale)

    def _joined(self, attended: Tensor, fed: Tensor) -> Tensor:
        delta = self._scaled(attended.add_(fed))
        return delta if self.parallel is None else self.parallel.all_reduce(delta)
