"""Gemma 3 (text): Gemma 2 with normalised q and k in place of soft caps, five windowed layers to each full one, and
rotary positions of their own for the windowed. config.json may be the multimodal model's, with a text_config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import gemma2, llama
from runner.engines.native.models.gemma2 import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec"]

_DEFAULTS = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
             "max_position_embeddings": 131072, "attn_logit_softcapping": None,
             "final_logit_softcapping": None}  # fmt: skip
"""Google's files leave these out."""


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    config = _DEFAULTS | config | (config.get("text_config") or {})
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    layers = range(1, config["num_hidden_layers"] + 1)
    kinds = ["full_attention" if layer % every == 0 else "sliding_attention" for layer in layers]
    base = gemma2.spec({**config, "layer_types": config.get("layer_types") or kinds})
    local = {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
    if "sliding_attention" in (config.get("rope_parameters") or {}):
        local = {"rope_parameters": config["rope_parameters"]}
    return replace(
        base,
        qk_norm="head",
        rope=llama.rope(config, base.head_dim, kind="full_attention", theta=1e6),
        rope_local=llama.rope(local, base.head_dim, kind="sliding_attention"),
    )
