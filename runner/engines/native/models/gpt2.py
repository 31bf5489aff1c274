"""GPT-2: learned positions, LayerNorm, weights stored [in, out]. Other families of this kind start from this spec."""

from __future__ import annotations

from typing import Any

from runner.engines.native.models.llama import activation
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names

NAMES = {
    "embed": "wte", "position": "wpe", "norm": "ln_f", "head": "lm_head",
    "norm1": "h.{i}.ln_1", "norm2": "h.{i}.ln_2", "attn.qkv": "h.{i}.attn.c_attn", "attn.out": "h.{i}.attn.c_proj",
    "mlp.up": "h.{i}.mlp.c_fc", "mlp.down": "h.{i}.mlp.c_proj",
}  # fmt: skip


def supports(config: dict[str, Any]) -> bool:
    """Not Mistral's stanford variants, whose scores are scaled by the layer's number."""
    return not config.get("scale_attn_by_inverse_layer_idx", False)


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    hidden, heads = config["n_embd"], config["n_head"]
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=config.get("n_inner") or 4 * hidden,
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        position="learned",
        max_position=config.get("n_positions", 1024),
        qkv_bias=True,
        out_bias=True,
        scale=None if config.get("scale_attn_weights", True) else 1.0,
        activation=activation(config.get("activation_function", "gelu_new")),
        gated=False,
        mlp_bias=True,
        tied_head=config.get("tie_word_embeddings", True),
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    return Names(NAMES, transposed=frozenset({"attn.qkv", "attn.out", "mlp.up", "mlp.down"}))
