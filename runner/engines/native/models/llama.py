"""LLaMA 1, 2, 3.x, and whatever is LLaMA under another name (Vicuna, Yi, XVERSE, Aquila).

Other families start from this spec and name what differs.
"""

from dataclasses import replace
from typing import Any

from runner.engines.native.spec import Activation, Config, DecoderSpec, RopeSpec
from runner.engines.native.weights import Names
from runner.errors import EngineStartFailed

NAMES = Names({
    "embed": "embed_tokens", "norm": "norm", "head": "lm_head",
    "norm1": "layers.{i}.input_layernorm", "norm2": "layers.{i}.post_attention_layernorm",
    "attn.q": "layers.{i}.self_attn.q_proj", "attn.k": "layers.{i}.self_attn.k_proj",
    "attn.v": "layers.{i}.self_attn.v_proj", "attn.out": "layers.{i}.self_attn.o_proj",
    "attn.q_norm": "layers.{i}.self_attn.q_norm", "attn.k_norm": "layers.{i}.self_attn.k_norm",
    "mlp.gate": "layers.{i}.mlp.gate_proj", "mlp.up": "layers.{i}.mlp.up_proj", "mlp.down": "layers.{i}.mlp.down_proj",
})  # fmt: skip
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "swiglu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu", "relu2": "relu2", "quick_gelu": "quick_gelu",
}  # fmt: skip


def spec(config: Config, **changes: Any) -> DecoderSpec:
    """`changes` are the fields in which a family differs. Raises EngineStartFailed for an unknown activation."""
    heads, bias = config["num_attention_heads"], config.get("attention_bias", False)
    activation = config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise EngineStartFailed(f"activation {activation!r} is unknown; known are {', '.join(sorted(_ACTIVATIONS))}")
    plain = DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=_head_dim(config),
        intermediate_size=config["intermediate_size"],
        norm_eps=config.get("norm_eps", 1e-6),
        rope=rope(config),
        max_position=config.get("max_position_embeddings", 2048),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.get("mlp_bias", False),
        activation=_ACTIVATIONS[activation],
        tied_head=config.get("tie_word_embeddings", False),
    )
    return replace(plain, **changes)


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rope(
    config: Config, *, kind: str | None = None, theta: float = 10000.0, share: float = 1.0, interleaved: bool = False
) -> RopeSpec:
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
        dim=int(_head_dim(config) * share),
        interleaved=interleaved,
        scaling=scaling if (scaling.get("rope_type") or scaling.get("type") or "default") != "default" else None,
        max_position=config.get("max_position_embeddings", 2048),
    )


def windows(config: Config, *, default: int | None = None, kinds: list[str] | None = None) -> tuple[int | None, ...]:
    """Sliding windows by layer: `layer_types` or the family's `kinds` where there are any, else the same everywhere."""
    window: int | None = config.get("sliding_window", default)
    kinds = config.get("layer_types") or kinds
    if not window or config.get("use_sliding_window") is False:
        return ()
    if kinds:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return (window,) * int(config["num_hidden_layers"])
