"""GLM-4 (0414): norms around each sublayer, half of each head turned in interleaved pairs, fused gate_up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import glm, llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    return replace(glm.spec(config), block="sandwich")


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    norms = {"norm1_post": "layers.{i}.post_self_attn_layernorm", "norm2_post": "layers.{i}.post_mlp_layernorm"}
    return Names(llama.NAMES | glm.FUSED | norms)
