"""Ops: the functions with fast variants, in one table. "torch" is the reference; "triton" and "cpu" replace some.

Every module that uses one has an attribute `ops`; use_ops() sets it on all modules of a model. A backend exports OPS,
made by dataclasses.replace() of the reference. Kernels must not make the host wait.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

BACKENDS = {
    "torch": "runner.engines.native.kernels.torch_ops:OPS",
    "triton": "runner.engines.native.kernels.triton_ops:OPS",
    "cpu": "runner.engines.native.kernels.cpu:OPS",
}


class Rotation(NamedTuple):
    """Rotary factors of a step's tokens, gathered once and shared by all layers with the same RopeSpec."""

    cos_sin: Tensor
    """[tokens, dim] float32: cos of dim/2 frequencies, then sin. `dim` leading channels of a head turn."""
    is_interleaved: bool


class HeadNorms(NamedTuple):
    """RMSNorm over each head of q and k before rotation."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float


@dataclass(frozen=True)
class Ops:
    """One backend."""

    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """(x [rows, in], weight [out, in], bias [out] or None) -> [rows, out]."""
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """(x [rows, n], weight [n], eps) -> x / rms(x) * weight in x's dtype, computed in float32."""
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """(x, delta, weight, eps): x += delta in place; -> rms_norm(x)."""
    gate: Callable[[Tensor, str], Tensor]
    """(gate_up [rows, 2n], activation) -> act(gate) * up, [rows, n]."""
    rope_write: Callable[..., None]
    """(qkv [tokens, heads + 2 kv_heads, head_dim], num_heads, norms: HeadNorms | None, rotation: Rotation | None,
    cache: LayerCache | None, slots): q and k are normalised and turned in place, k and v written to the cache."""
    write_cache: Callable[..., None]
    """(k, v [tokens, kv_heads, head_dim], cache: LayerCache, slots)."""
    paged_attention: Callable[..., Tensor]
    """(q [tokens, heads, head_dim], cache: LayerCache, batch, *, scale, window, softcap, alibi_slopes) -> the same
    shape, contiguous; this step's k and v are in the cache already."""
    moe: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, str], Tensor]
    """(x [rows, n], expert ids [rows, k], weights [rows, k] float32, gate_up [experts, 2m, n], down [experts, n, m],
    activation) -> [rows, n]."""
    int8_linear: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """(x [rows, in], weight int8 [out, in], scale float32 [out], bias) -> x (weight * scale)^T + bias in x's dtype."""
    int4_linear: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """(x [rows, in], weight uint8 [out, in / 2] with the even column in the low four bits, scale float32 and zero uint8
    [out, in / group], bias); w = (q - zero) * scale; groups of 128, 64 or 32."""


def ops(name: str) -> Ops:
    """A backend by name; imports its library."""
    module, attribute = BACKENDS[name].split(":")
    found: Any = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, Ops)
    return found


def use_ops(model: nn.Module, chosen: Ops) -> None:
    """Set the backend of every module of `model`."""
    for module in model.modules():
        if isinstance(getattr(module, "ops", None), Ops):
            module.ops = chosen  # type: ignore[assignment]
