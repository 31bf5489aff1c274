"""InternLM2 and 2.5: LLaMA with one projection for groups of q heads and their k and v."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    bias = config.get("bias", False)
    return replace(llama.spec(config), qkv_bias=bias, out_bias=bias)


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    templates = {
        "embed": "tok_embeddings", "norm": "norm", "head": "output",
        "norm1": "layers.{i}.attention_norm", "norm2": "layers.{i}.ffn_norm",
        "attn.qkv": "layers.{i}.attention.wqkv", "attn.out": "layers.{i}.attention.wo",
        "mlp.gate": "layers.{i}.feed_forward.w1", "mlp.up": "layers.{i}.feed_forward.w3",
        "mlp.down": "layers.{i}.feed_forward.w2",
    }  # fmt: skip
    return Names(templates, qkv_layout="grouped")
