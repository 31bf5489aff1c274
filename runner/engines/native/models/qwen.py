"""Qwen (1): LLaMA with fused biased qkv under GPT-2-like names.

Its stretching beyond `seq_length` (dynamic NTK, log-n scaling) is not done: within `seq_length` neither has an effect.
"""

from __future__ import annotations

from typing import Any

from runner.engines.native.spec import DecoderSpec, RopeSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("kv_channels") or hidden // heads
    length = config.get("seq_length") or config.get("max_position_embeddings", 2048)
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=config["intermediate_size"] // 2,
        norm_eps=config.get("layer_norm_epsilon", 1e-6),
        rope=RopeSpec(config.get("rotary_emb_base", 10000.0), int(head_dim * config.get("rotary_pct", 1.0))),
        max_position=length,
        qkv_bias=True,
        out_bias=not config.get("no_bias", True),
        mlp_bias=not config.get("no_bias", True),
        tied_head=config.get("tie_word_embeddings", False),
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names: the MLP is c_proj(w1(x) * silu(w2(x)))."""
    return Names({
        "embed": "wte", "norm": "ln_f", "head": "lm_head", "norm1": "h.{i}.ln_1", "norm2": "h.{i}.ln_2",
        "attn.qkv": "h.{i}.attn.c_attn", "attn.out": "h.{i}.attn.c_proj",
        "mlp.up": "h.{i}.mlp.w1", "mlp.gate": "h.{i}.mlp.w2", "mlp.down": "h.{i}.mlp.c_proj",
    })  # fmt: skip
