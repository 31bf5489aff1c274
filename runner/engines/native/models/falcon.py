"""Falcon. 7B: one head of K and V, attention and MLP in parallel behind one LayerNorm. 40B and 180B: groups of heads,
two LayerNorms. RW-1B: ALiBi, one after the other."""

from __future__ import annotations

from typing import Any, Literal

from runner.engines.native.models import bloom, llama
from runner.engines.native.models._alibi import alibi_slopes
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec. ALiBi is added before scores are scaled, so that slopes are scaled too."""
    hidden, heads = config["hidden_size"], config.get("n_head") or config["num_attention_heads"]
    head_dim, has_alibi, bias = hidden // heads, config.get("alibi", False), config.get("bias", False)
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config.get("n_layer") or config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=_kv_heads(config, heads),
        head_dim=head_dim,
        intermediate_size=config.get("ffn_hidden_size") or 4 * hidden,
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        block=_block(config),
        position="alibi" if has_alibi else "rope",
        rope=llama.rope(config, head_dim),
        alibi_slopes=tuple(slope * head_dim**-0.5 for slope in alibi_slopes(heads)) if has_alibi else (),
        max_position=config.get("max_position_embeddings", 2048),
        qkv_bias=bias,
        out_bias=bias,
        activation=llama.activation(config.get("activation", "gelu")),
        gated=False,
        mlp_bias=bias,
        tied_head=config.get("tie_word_embeddings", True),
    )


def _kv_heads(config: dict[str, Any], heads: int) -> int:
    if config.get("new_decoder_architecture", False):
        return int(config.get("num_kv_heads") or config.get("n_head_kv") or heads)
    return 1 if config.get("multi_query", True) else heads


def _block(config: dict[str, Any]) -> Literal["sequential", "parallel", "parallel_two_norms"]:
    if config.get("new_decoder_architecture", False):
        return "parallel" if config.get("num_ln_in_parallel_attn") == 1 else "parallel_two_norms"
    return "parallel" if config.get("parallel_attn", True) else "sequential"


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names; without groups and with one head of K and V the grouped layout is [q | k | v]."""
    norms = {"norm1": "h.{i}.ln_attn", "norm2": "h.{i}.ln_mlp"} if _block(config) == "parallel_two_norms" else {}
    return Names(bloom.ENDS | bloom.LAYER | norms, qkv_layout="grouped")
