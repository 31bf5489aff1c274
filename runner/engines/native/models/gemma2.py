"""Gemma 2: Gemma with norms after each sublayer, soft-capped scores and logits, a window on every other layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import gemma, llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    kinds = ["sliding_attention", "full_attention"] * config["num_hidden_layers"]
    stated = config.get("layer_types") or kinds[: config["num_hidden_layers"]]
    return replace(
        gemma.spec(config),
        block="sandwich",
        scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        windows=llama.windows({**config, "layer_types": stated}, default=4096),
        attn_softcap=config.get("attn_logit_softcapping", 50.0),
        logit_softcap=config.get("final_logit_softcapping", 30.0),
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    norms = {
        "norm1_post": "layers.{i}.post_attention_layernorm", "norm2": "layers.{i}.pre_feedforward_layernorm",
        "norm2_post": "layers.{i}.post_feedforward_layernorm",
    }  # fmt: skip
    return Names(llama.NAMES | norms)
