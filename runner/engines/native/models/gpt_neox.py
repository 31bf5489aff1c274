"""GPT-NeoX (Pythia, Dolly): attention and MLP in parallel behind two LayerNorms, part of each head turned."""

from __future__ import annotations

from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec; rotary_pct and rotary_emb_base are the older spelling of rope_parameters."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    bias = config.get("attention_bias", True)
    theta, share = config.get("rotary_emb_base", 10000.0), config.get("rotary_pct", 0.25)
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=config.get("intermediate_size") or 4 * hidden,
        norm="layer",
        norm_eps=config.get("layer_norm_eps", 1e-5),
        norm_bias=True,
        block="parallel_two_norms" if config.get("use_parallel_residual", True) else "sequential",
        rope=llama.rope(config, hidden // heads, theta=theta, share=share),
        max_position=config.get("max_position_embeddings", 2048),
        qkv_bias=bias,
        out_bias=bias,
        activation=llama.activation(config.get("hidden_act", "gelu")),
        gated=False,
        mlp_bias=True,
        tied_head=config.get("tie_word_embeddings", False),
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    templates = {
        "embed": "embed_in", "norm": "final_layer_norm", "head": "embed_out",
        "norm1": "layers.{i}.input_layernorm", "norm2": "layers.{i}.post_attention_layernorm",
        "attn.qkv": "layers.{i}.attention.query_key_value", "attn.out": "layers.{i}.attention.dense",
        "mlp.up": "layers.{i}.mlp.dense_h_to_4h", "mlp.down": "layers.{i}.mlp.dense_4h_to_h",
    }  # fmt: skip
    return Names(templates, prefixes=("gpt_neox.", ""), qkv_layout="interleaved_heads")
