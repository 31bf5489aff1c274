"""BLOOM: ALiBi in place of positions, a LayerNorm behind the embedding."""

from __future__ import annotations

from typing import Any

from runner.engines.native.models._alibi import alibi_slopes
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec; older files say n_embed, num_attention_heads, num_hidden_layers."""
    hidden = config.get("n_embed") or config["hidden_size"]
    heads = config.get("n_head") or config["num_attention_heads"]
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config.get("n_layer") or config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=4 * hidden,
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        residual_post_norm=config.get("apply_residual_connection_post_layernorm", False),
        embed_norm=True,
        position="alibi",
        alibi_slopes=alibi_slopes(heads),
        max_position=config.get("seq_length", 2048),
        qkv_bias=True,
        out_bias=True,
        activation="gelu_tanh",
        gated=False,
        mlp_bias=True,
        tied_head=config.get("tie_word_embeddings", True),
    )


LAYER = {
    "norm1": "h.{i}.input_layernorm", "norm2": "h.{i}.post_attention_layernorm",
    "attn.qkv": "h.{i}.self_attention.query_key_value", "attn.out": "h.{i}.self_attention.dense",
    "mlp.up": "h.{i}.mlp.dense_h_to_4h", "mlp.down": "h.{i}.mlp.dense_4h_to_h",
}  # fmt: skip
ENDS = {"embed": "word_embeddings", "embed_norm": "word_embeddings_layernorm", "norm": "ln_f", "head": "lm_head"}


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    return Names(ENDS | LAYER, qkv_layout="interleaved_heads")
