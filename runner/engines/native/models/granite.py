"""Granite: LLaMA with four factors (embedding, attention, residual, logits)."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec


def spec(config: Config) -> DecoderSpec:
    return llama.spec(
        config,
        scale=config.get("attention_multiplier", 1.0),
        embed_scale=config.get("embedding_multiplier", 1.0),
        residual_scale=config.get("residual_multiplier", 1.0),
        logit_scale=1.0 / config.get("logits_scaling", 1.0),
    )
