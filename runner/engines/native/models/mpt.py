"""MPT: ALiBi, LayerNorm without bias."""

from __future__ import annotations

from typing import Any

from runner.engines.native.models._alibi import alibi_slopes
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def supports(config: dict[str, Any]) -> bool:
    """Not the variants of MosaicML's own code that transformers does not have either."""
    attention = config.get("attn_config") or {}
    return (
        attention.get("alibi", True)
        and attention.get("attn_type", "multihead_attention") == "multihead_attention"
        and not attention.get("qk_ln", False)
        and not attention.get("prefix_lm", False)
        and config.get("no_bias", True)
    )


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    hidden, heads, attention = config["d_model"], config["n_heads"], config.get("attn_config") or {}
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config["n_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=int(config.get("expansion_ratio", 4) * hidden),
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        position="alibi",
        alibi_slopes=alibi_slopes(heads, attention.get("alibi_bias_max", 8)),
        max_position=config.get("max_seq_len", 2048),
        scale=attention.get("softmax_scale"),
        clip_qkv=attention.get("clip_qkv"),
        activation="gelu",
        gated=False,
        tied_head=config.get("tie_word_embeddings", True),
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    return Names({
        "embed": "wte", "norm": "norm_f", "head": "lm_head",
        "norm1": "blocks.{i}.norm_1", "norm2": "blocks.{i}.norm_2",
        "attn.qkv": "blocks.{i}.attn.Wqkv", "attn.out": "blocks.{i}.attn.out_proj",
        "mlp.up": "blocks.{i}.ffn.up_proj", "mlp.down": "blocks.{i}.ffn.down_proj",
    })  # fmt: skip
