"""Phi-3, 3.5 and 4: LLaMA with fused qkv and gate_up, LongRoPE, perhaps a sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = llama.spec({"rms_norm_eps": 1e-5, **config})
    return replace(base, windows=llama.windows(config))


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    fused = {"attn.qkv": "layers.{i}.self_attn.qkv_proj", "mlp.gate_up": "layers.{i}.mlp.gate_up_proj"}
    return Names(llama.NAMES | fused)
