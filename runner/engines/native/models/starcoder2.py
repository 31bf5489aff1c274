"""StarCoder2: LLaMA with LayerNorm, biases, no gate, perhaps a sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    bias = config.get("use_bias", True)
    base = llama.spec({"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "attention_bias": bias,
                       "mlp_bias": bias, **config})  # fmt: skip
    eps = config.get("norm_epsilon", 1e-5)
    return replace(base, norm="layer", norm_eps=eps, norm_bias=True, gated=False, windows=llama.windows(config))


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    return Names(llama.NAMES | {"mlp.up": "layers.{i}.mlp.c_fc", "mlp.down": "layers.{i}.mlp.c_proj"})
