"""GPT-BigCode (StarCoder, SantaCoder): GPT-2 with one head of K and V, weights stored [out, in]."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import gpt2
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = gpt2.spec({"activation_function": "gelu_pytorch_tanh", **config})
    return replace(base, num_kv_heads=1 if config.get("multi_query", True) else base.num_heads)


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names; without multi_query each head has its q, k and v together."""
    return Names(gpt2.NAMES, qkv_layout="concat" if config.get("multi_query", True) else "interleaved_heads")
