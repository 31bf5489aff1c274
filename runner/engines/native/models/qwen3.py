"""Qwen3: LLaMA with a norm on each head of q and k."""

from runner.engines.native.models import llama, qwen2
from runner.engines.native.spec import Config, DecoderSpec


def spec(config: Config) -> DecoderSpec:
    config = {**config, "head_dim": config.get("head_dim") or 128}
    return llama.spec(config, qk_norm="head", windows=qwen2.windows(config))
