"""Qwen2 and Qwen2.5: LLaMA with biases on q, k and v."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.models.llama import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec"]


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    return replace(llama.spec(config), qkv_bias=True, out_bias=False, windows=windows(config))


def windows(config: dict[str, Any]) -> tuple[int | None, ...]:
    """Off by default; else of the layers from `max_window_layers` on."""
    if not config.get("use_sliding_window"):
        return ()
    first = config.get("max_window_layers", 28)
    kinds = ["full_attention"] * first + ["sliding_attention"] * config["num_hidden_layers"]
    stated = config.get("layer_types") or kinds[: config["num_hidden_layers"]]
    return llama.windows({**config, "layer_types": stated}, default=4096)
