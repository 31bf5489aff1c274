"""DecoderSpec: a decoder-only architecture as data. Family files make one of config.json; layers/decoder.py builds it.

Owns the vocabulary of differences between families (norms, positions, residual shape, MLP, experts), no tensors and no
names of checkpoints (weights.py). Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Config = dict[str, Any]
"""A parsed config.json."""
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu"]
"""gelu is exact (erf); gelu_tanh is the tanh approximation (HF: gelu_new, gelu_pytorch_tanh, gelu_fast)."""


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions. `dim` leading channels of a head turn; interleaved pairs (0,1),(2,3) or halves (i, i+dim/2)."""

    theta: float = 10000.0
    dim: int = 0
    interleaved: bool = False
    scaling: dict[str, Any] | None = None
    """config.json's rope_scaling or rope_parameters: linear, dynamic, yarn, llama3, longrope, as in transformers."""
    max_position: int = 0
    """max_position_embeddings of config.json."""


@dataclass(frozen=True)
class MoeSpec:
    """Experts in place of the MLP."""

    num_experts: int
    top_k: int
    intermediate_size: int
    normalize: bool = True
    """Divide the chosen experts' weights by their sum."""
    shared_intermediate_size: int = 0
    """Size of an expert that every token uses; 0 for none."""
    shared_gate: bool = False
    """Whether the shared expert's output is scaled by sigmoid(linear(x)) (Qwen2-MoE)."""
    dense_layers: frozenset[int] = frozenset()
    """Layers that have a plain MLP (of DecoderSpec.intermediate_size)."""


@dataclass(frozen=True)
class DecoderSpec:
    """One architecture. Defaults are LLaMA's."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    # norms
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    """LayerNorm with a bias (False: weight only, as MPT)."""
    norm_plus_one: bool = False
    """RMSNorm multiplies by (1 + weight), in float32 (Gemma)."""
    block: Literal["sequential", "parallel", "parallel_two_norms", "post_norm", "sandwich"] = "sequential"
    """How a layer joins attention and MLP with the residual x:
    sequential            x += attn(norm1(x)); x += mlp(norm2(x))
    parallel              x += attn(norm1(x)) + mlp(norm1(x))                      (Phi, Falcon-7B, Cohere)
    parallel_two_norms    x += attn(norm1(x)) + mlp(norm2(x))                      (GPT-NeoX, Falcon-40B)
    post_norm             x += norm1(attn(x)); x += norm2(mlp(x))                  (OLMo-2)
    sandwich              x += norm1_post(attn(norm1(x))); x += norm2_post(mlp(norm2(x)))   (Gemma 2/3, GLM-4)"""
    residual_post_norm: bool = False
    """The residual is taken after norm1/norm2 (BLOOM's apply_residual_connection_post_layernorm)."""
    embed_norm: bool = False
    """A norm right after the embedding (BLOOM)."""
    final_norm: bool = True
    # positions
    position: Literal["rope", "alibi", "learned", "none"] = "rope"
    rope: RopeSpec = RopeSpec()
    rope_local: RopeSpec | None = None
    """For layers with a sliding window, where they differ (Gemma 3)."""
    no_rope_layers: frozenset[int] = frozenset()
    """Layers without rotary positions (SmolLM3)."""
    max_position: int = 0
    """Rows of the learned position embedding; else the trained context."""
    position_offset: int = 0
    """Added to positions before the learned embedding is looked up (OPT: 2)."""
    alibi_slopes: tuple[float, ...] = ()
    """One a head, where position is `alibi`."""
    # attention
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    """RMSNorm of q and k before rotation: over each head's head_dim (Qwen3, Gemma 3), or over all heads (OLMo-2)."""
    scale: float | None = None
    """Of scores; None is head_dim ** -0.5."""
    windows: tuple[int | None, ...] = ()
    """Sliding window of each layer: a query at position p sees keys p - window < k <= p; () is none anywhere."""
    attn_softcap: float | None = None
    clip_qkv: float | None = None
    # MLP
    activation: Activation = "silu"
    gated: bool = True
    mlp_bias: bool = False
    moe: MoeSpec | None = None
    # ends and factors
    tied_head: bool = False
    head_bias: bool = False
    normalized_head: bool = False
    """Rows of the head are divided by their length at load (Baichuan2)."""
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    """Of what each sublayer adds (Granite)."""
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer, None for full attention."""
        return self.windows[layer] if self.windows else None

    def rope_of(self, layer: int) -> RopeSpec | None:
        """The rotary positions of a layer, None for one whose q and k are not rotated."""
        if self.position != "rope" or layer in self.no_rope_layers:
            return None
        return self.rope_local if self.rope_local is not None and self.window(layer) is not None else self.rope
