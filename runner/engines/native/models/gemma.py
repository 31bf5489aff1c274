"""Gemma (1): LLaMA with (1 + weight) norms, GELU, scaled embeddings and a tied head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.models.llama import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec"]


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec; `hidden_act` says "gelu" in old files and means the tanh form."""
    base = llama.spec({"head_dim": 256, "tie_word_embeddings": True, **config, "hidden_act": "gelu_pytorch_tanh"})
    return replace(base, norm_plus_one=True, embed_scale=base.hidden_size**0.5)
