"""Qwen3: LLaMA with a norm on each head of q and k."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama, qwen2
from runner.engines.native.models.llama import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec"]


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = llama.spec({**config, "head_dim": config.get("head_dim") or 128})
    return replace(base, qk_norm="head", windows=qwen2.windows(config))
