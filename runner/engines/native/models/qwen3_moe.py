"""Qwen3-MoE: Qwen3 with experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama, qwen2_moe
from runner.engines.native.models.qwen2_moe import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec"]


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    windows = llama.windows(config, default=4096) if config.get("use_sliding_window") else ()
    return replace(llama.spec(config), qk_norm="head", moe=qwen2_moe.moe(config), windows=windows)
