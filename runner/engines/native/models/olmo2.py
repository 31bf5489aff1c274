"""OLMo 2: LLaMA with the norms behind the sublayers, and q and k normalised over all heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    return replace(llama.spec({"rms_norm_eps": 1e-5, **config}), block="post_norm", qk_norm="full")


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    norms = {"norm1": "layers.{i}.post_attention_layernorm", "norm2": "layers.{i}.post_feedforward_layernorm"}
    return Names(llama.NAMES | norms)
