"""Cohere (Command-R): attention and MLP in parallel behind one LayerNorm without bias, interleaved rotary pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.models.llama import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec", "supports"]


def supports(config: dict[str, Any]) -> bool:
    """Not Command-R+, whose q and k have a LayerNorm for each head."""
    return not config.get("use_qk_norm", False)


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = llama.spec({"tie_word_embeddings": True, **config})
    return replace(
        base,
        block="parallel",
        norm="layer",
        norm_eps=config.get("layer_norm_eps", 1e-5),
        rope=llama.rope(config, base.head_dim, theta=500000.0, interleaved=True),
        logit_scale=config.get("logit_scale", 0.0625),
    )
