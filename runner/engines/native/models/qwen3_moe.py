"""Qwen3-MoE: Qwen3 with experts."""

from runner.engines.native.models import llama, qwen2_moe
from runner.engines.native.spec import Config, DecoderSpec

NAMES = qwen2_moe.NAMES


def spec(config: Config) -> DecoderSpec:
    return llama.spec(config, qk_norm="head", moe=qwen2_moe.moe(config), windows=qwen2_moe.windows(config))
