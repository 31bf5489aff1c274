"""Phi-1, 1.5 and 2: attention and MLP in parallel behind one LayerNorm, part of each head turned, biases everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def supports(config: dict[str, Any]) -> bool:
    """Not with a LayerNorm on each head of q and k."""
    return not config.get("qk_layernorm", False)


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = llama.spec({"hidden_act": "gelu_new", "attention_bias": True, "mlp_bias": True, **config})
    return replace(
        base,
        block="parallel",
        norm="layer",
        norm_eps=config.get("layer_norm_eps", 1e-5),
        norm_bias=True,
        rope=llama.rope(config, base.head_dim, share=0.5),
        gated=False,
        head_bias=True,
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    changed = {
        "norm": "final_layernorm", "attn.out": "layers.{i}.self_attn.dense",
        "mlp.up": "layers.{i}.mlp.fc1", "mlp.down": "layers.{i}.mlp.fc2",
    }  # fmt: skip
    return Names(llama.NAMES | changed)
