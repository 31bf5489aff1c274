"""ChatGLM2, ChatGLM3 and GLM-4-9B in its first form: LLaMA with few heads of K and V, half of each head turned in
interleaved pairs, biased qkv, fused gate_up. (ChatGLM-6B, the first, is another architecture.)"""

from __future__ import annotations

from typing import Any

from runner.engines.native.spec import DecoderSpec, RopeSpec
from runner.engines.native.weights import Names


def supports(config: dict[str, Any]) -> bool:
    """Not the first ChatGLM, nor a residual behind the norm."""
    return "padded_vocab_size" in config and not config.get("apply_residual_connection_post_layernorm", False)


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec; rope_ratio stretches the base (chatglm3-6b-32k, glm-4-9b)."""
    heads, bias = config["num_attention_heads"], config.get("add_bias_linear", False)
    head_dim = config.get("kv_channels") or config["hidden_size"] // heads
    length = config.get("seq_length", 2048)
    return DecoderSpec(
        vocab_size=config["padded_vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_layers"],
        num_heads=heads,
        num_kv_heads=config["multi_query_group_num"] if config.get("multi_query_attention", False) else heads,
        head_dim=head_dim,
        intermediate_size=config["ffn_hidden_size"],
        norm="rms" if config.get("rmsnorm", True) else "layer",
        norm_eps=config.get("layernorm_epsilon", 1e-5),
        norm_bias=True,
        final_norm=config.get("post_layer_norm", True),
        rope=RopeSpec(10000.0 * config.get("rope_ratio", 1.0), head_dim // 2, interleaved=True, max_position=length),
        max_position=length,
        qkv_bias=bias or config.get("add_qkv_bias", False),
        out_bias=bias,
        mlp_bias=bias,
        tied_head=config.get("tie_word_embeddings", False),
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    layer = "encoder.layers.{i}"
    templates = {
        "embed": "embedding.word_embeddings", "norm": "encoder.final_layernorm", "head": "output_layer",
        "norm1": f"{layer}.input_layernorm", "norm2": f"{layer}.post_attention_layernorm",
        "attn.qkv": f"{layer}.self_attention.query_key_value", "attn.out": f"{layer}.self_attention.dense",
        "mlp.gate_up": f"{layer}.mlp.dense_h_to_4h", "mlp.down": f"{layer}.mlp.dense_4h_to_h",
    }  # fmt: skip
    return Names(templates, prefixes=("transformer.", ""))
