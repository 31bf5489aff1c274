"""The reference backend: every op of ops.py in plain torch, exact in float32, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from runner.engines.native.kernels.ops import HeadNorms, Ops, Rotation
from runner.engines.native.kernels.torch_attention import paged_attention, write_cache
from runner.engines.native.kernels.torch_quantized import int4_linear, int8_linear
from runner.engines.native.layers.cache import LayerCache

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
"""By the names of spec.Activation."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight; a float32 weight on a bf16 x is applied in float32."""
    if weight.dtype != x.dtype:
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x += delta, then its norm."""
    return rms_norm(x.add_(delta), weight, eps)


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """act(first half) * second half."""
    left, right = gate_up.chunk(2, -1)
    return ACTIVATIONS[activation](left).mul_(right)


def rope_write(
    qkv: Tensor,
    num_heads: int,
    norms: HeadNorms | None,
    rotation: Rotation | None,
    cache: LayerCache | None,
    slots: Tensor,
) -> None:
    """Norm and turn q and k in place; write k and v."""
    num_kv_heads = (qkv.shape[1] - num_heads) // 2
    if norms is not None:
        q, k = qkv[:, :num_heads], qkv[:, num_heads : num_heads + num_kv_heads]
        q.copy_(rms_norm(q, norms.q_weight, norms.eps))
        k.copy_(rms_norm(k, norms.k_weight, norms.eps))
    if rotation is not None:
        rotate(qkv[:, : num_heads + num_kv_heads], rotation)
    if cache is not None:
        write_cache(qkv[:, num_heads : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :], cache, slots)


def rotate(heads: Tensor, rotation: Rotation) -> None:
    """Turn the leading channels of `heads` [tokens, heads, head_dim] in place (RoFormer, arXiv 2104.09864)."""
    dim = rotation.cos_sin.shape[-1]
    cos, sin = rotation.cos_sin.unsqueeze(1).chunk(2, -1)
    turned = heads[..., :dim]
    if rotation.is_interleaved:
        left, right = turned[..., 0::2], turned[..., 1::2]
    else:
        left, right = turned.chunk(2, -1)
    new_left = (left * cos).addcmul_(right.float(), sin, value=-1)
    right.copy_((right * cos).addcmul_(left.float(), sin))
    left.copy_(new_left)


def moe(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """See by_expert."""
    return by_expert(
        x, ids, weights, len(down), lambda e, part: F.linear(gate(F.linear(part, gate_up[e]), activation), down[e])
    )


def by_expert(
    x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, expert: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Tokens sorted by expert, `expert(number, its rows of x)` for each; the host waits for the counts."""
    flat, out = ids.reshape(-1), torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    counts = flat.bincount(minlength=num_experts).tolist()
    for number, chosen in enumerate(torch.split(flat.argsort(stable=True), counts)):
        if len(chosen):
            rows = chosen // ids.shape[1]
            out.index_add_(0, rows, expert(number, x[rows]).float() * weights.reshape(-1, 1)[chosen])
    return out.to(x.dtype)


OPS = Ops(F.linear, rms_norm, add_rms_norm, gate, rope_write, write_cache, paged_attention, moe, int8_linear,
          int4_linear)  # fmt: skip
