"""Mistral: LLaMA with a sliding window where config.json has one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.models.llama import names
from runner.engines.native.spec import DecoderSpec

__all__ = ["names", "spec"]


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    return replace(llama.spec(config), windows=llama.windows(config, default=4096))
