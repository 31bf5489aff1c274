"""SmolLM3: LLaMA, where some layers have no rotary positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.models.llama import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec"]


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec; `no_rope_layers` holds 0 for a layer without."""
    layers, every = range(config["num_hidden_layers"]), config.get("no_rope_layer_interval", 4)
    has_rope = config.get("no_rope_layers") or [(layer + 1) % every for layer in layers]
    without = frozenset(layer for layer in layers if not has_rope[layer])
    kinds = config.get("layer_types") or ["sliding_attention" if layer in without else "" for layer in layers]
    is_windowed = config.get("use_sliding_window") and config.get("sliding_window")
    base = llama.spec({"tie_word_embeddings": True, **config})
    return replace(
        base,
        rope=llama.rope(config, base.head_dim, theta=2e6),
        no_rope_layers=without,
        windows=llama.windows({**config, "layer_types": kinds}) if is_windowed else (),
    )
