"""GLM (glm-4-9b-hf): LLaMA with half of each head turned in interleaved pairs, biased qkv, fused gate_up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names

FUSED = {"mlp.gate_up": "layers.{i}.mlp.gate_up_proj"}


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = llama.spec({"head_dim": 128, **config})
    rope = llama.rope(config, base.head_dim, share=0.5, interleaved=True)
    return replace(base, rope=rope, qkv_bias=config.get("attention_bias", True), out_bias=False)


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    return Names(llama.NAMES | FUSED)
