"""StableLM: LLaMA with LayerNorm and a quarter of each head turned; perhaps attention and MLP in parallel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.models.llama import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec", "supports"]


def supports(config: dict[str, Any]) -> bool:
    """Not with a LayerNorm on each head of q and k (StableLM-2-12B)."""
    return not config.get("qk_layernorm", False)


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = llama.spec(config)
    return replace(
        base,
        block="parallel" if config.get("use_parallel_residual", False) else "sequential",
        norm="layer",
        norm_eps=config.get("layer_norm_eps", 1e-5),
        norm_bias=True,
        rope=llama.rope(config, base.head_dim, share=config.get("rope_pct", 0.25)),
        qkv_bias=config.get("use_qkv_bias", False),
    )
