"""OPT: learned positions that begin at 2, LayerNorm, ReLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def supports(config: dict[str, Any]) -> bool:
    """Not the 350M model: norms behind the sublayers, an embedding narrower than the rest."""
    is_plain = config.get("layer_norm_elementwise_affine", True) and not config.get("_remove_final_layer_norm", False)
    width = config.get("word_embed_proj_dim") or config["hidden_size"]
    return is_plain and config.get("do_layer_norm_before", True) and width == config["hidden_size"]


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    bias = config.get("enable_bias", True)
    base = llama.spec({
        "hidden_act": config.get("activation_function", "relu"), "intermediate_size": config["ffn_dim"],
        "tie_word_embeddings": True, "attention_bias": bias, "mlp_bias": bias, **config,
    })  # fmt: skip
    return replace(
        base, norm="layer", norm_eps=1e-5, norm_bias=True, position="learned", position_offset=2, gated=False
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    templates = {
        "embed": "embed_tokens", "position": "embed_positions", "norm": "final_layer_norm", "head": "lm_head",
        "norm1": "layers.{i}.self_attn_layer_norm", "norm2": "layers.{i}.final_layer_norm",
        "attn.q": "layers.{i}.self_attn.q_proj", "attn.k": "layers.{i}.self_attn.k_proj",
        "attn.v": "layers.{i}.self_attn.v_proj", "attn.out": "layers.{i}.self_attn.out_proj",
        "mlp.up": "layers.{i}.fc1", "mlp.down": "layers.{i}.fc2",
    }  # fmt: skip
    return Names(templates, prefixes=("model.decoder.", "decoder.", ""))
