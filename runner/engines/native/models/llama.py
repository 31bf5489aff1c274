"""LLaMA 1, 2, 3.x, and whatever is LLaMA under another name (Vicuna, Yi, XVERSE, Aquila).

Other families of this kind start from this spec and replace what differs.
"""

from __future__ import annotations

from typing import Any

from runner.engines.native.spec import Activation, DecoderSpec, RopeSpec
from runner.engines.native.weights import Names
from runner.errors import EngineStartFailed

ATTENTION = {
    "attn.q": "layers.{i}.self_attn.q_proj", "attn.k": "layers.{i}.self_attn.k_proj",
    "attn.v": "layers.{i}.self_attn.v_proj", "attn.out": "layers.{i}.self_attn.o_proj",
    "attn.q_norm": "layers.{i}.self_attn.q_norm", "attn.k_norm": "layers.{i}.self_attn.k_norm",
}  # fmt: skip
MLP = {
    "mlp.gate": "layers.{i}.mlp.gate_proj",
    "mlp.up": "layers.{i}.mlp.up_proj",
    "mlp.down": "layers.{i}.mlp.down_proj",
}
ENDS = {"embed": "embed_tokens", "norm": "norm", "head": "lm_head"}
NORMS = {"norm1": "layers.{i}.input_layernorm", "norm2": "layers.{i}.post_attention_layernorm"}
NAMES = ENDS | NORMS | ATTENTION | MLP

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "swiglu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu", "relu2": "relu2", "quick_gelu": "quick_gelu",
}  # fmt: skip


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate_size=config["intermediate_size"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope=rope(config, head_dim),
        max_position=config.get("max_position_embeddings", 2048),
        qkv_bias=config.get("attention_bias", False),
        out_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        activation=activation(config.get("hidden_act", "silu")),
        tied_head=config.get("tie_word_embeddings", False),
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    return Names(NAMES)


def rope(
    config: dict[str, Any], head_dim: int, *, kind: str | None = None, theta: float = 10000.0, share: float = 1.0,
    interleaved: bool = False,
) -> RopeSpec:  # fmt: skip
    """Rotary positions of config.json, old form (rope_theta, rope_scaling) or new (rope_parameters, by layer `kind` or
    not). `theta` and `share` (of head_dim that turns) are the family's defaults."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if kind is not None and isinstance(parameters.get(kind), dict):
        parameters = parameters[kind]
    scaling = {key: value for key, value in parameters.items() if not isinstance(value, dict)}
    if config.get("original_max_position_embeddings"):  # Phi-3 keeps it outside
        scaling["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    share = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or share
    return RopeSpec(
        theta=float(scaling.get("rope_theta") or config.get("rope_theta") or theta),
        dim=int(head_dim * share),
        interleaved=interleaved,
        scaling=scaling if (scaling.get("rope_type") or scaling.get("type") or "default") != "default" else None,
        max_position=config.get("max_position_embeddings", 2048),
    )


def activation(name: str) -> Activation:
    """HF's name -> ours. Raises EngineStartFailed for one that is unknown."""
    if name not in _ACTIVATIONS:
        raise EngineStartFailed(f"activation {name!r} is unknown; known are {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]


def windows(config: dict[str, Any], default: int | None = None) -> tuple[int | None, ...]:
    """Sliding windows by layer: `layer_types` where stated, else the same everywhere."""
    window: int | None = config.get("sliding_window", default)
    kinds = config.get("layer_types")
    if not window or config.get("use_sliding_window") is False:
        return ()
    if kinds:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return (window,) * int(config["num_hidden_layers"])
