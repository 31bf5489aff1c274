"""InternLM (1): LLaMA with biases on all four projections of attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.models.llama import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec"]


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec; `rotary` is the older spelling of rope_theta and rope_scaling."""
    bias = config.get("bias", True)
    rotary = config.get("rotary") or {}
    if rotary and not config.get("rope_scaling"):
        kind = "dynamic" if rotary.get("type") == "dynamic" else "default"
        scaling = {"type": kind, "factor": rotary.get("scaling_factor", 1.0)}
        config = {**config, "rope_theta": rotary.get("base", 10000.0), "rope_scaling": scaling}
    return replace(llama.spec(config), qkv_bias=bias, out_bias=bias)
