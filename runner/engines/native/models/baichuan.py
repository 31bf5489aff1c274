"""Baichuan and Baichuan2: LLaMA with fused qkv. 7B has rope, 13B ALiBi; Baichuan2 normalises the head's rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.models._alibi import alibi_slopes
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names

_VOCAB_2 = 125696
"""Only Baichuan2 has this vocabulary; nothing else in config.json tells the generations apart."""


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = llama.spec(config)
    is_second = config["vocab_size"] == _VOCAB_2 or config["model_type"] == "baichuan2"
    base = replace(base, normalized_head=is_second)
    if config.get("max_position_embeddings"):
        return base
    # the 13B models state `model_max_length` only: they have no position embedding
    slopes = alibi_slopes(base.num_heads)
    return replace(base, position="alibi", alibi_slopes=slopes, max_position=config.get("model_max_length", 4096))


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    return Names(llama.NAMES | {"attn.qkv": "layers.{i}.self_attn.W_pack"})
