"""Cohere (Command-R): attention and MLP in parallel behind one LayerNorm without bias, interleaved rotary pairs."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec


def supports(config: Config) -> bool:
    """Not Command-R+, whose q and k have a LayerNorm for each head."""
    return not config.get("use_qk_norm", False)


def spec(config: Config) -> DecoderSpec:
    return llama.spec(
        {"tie_word_embeddings": True, "norm_eps": 1e-5, **config},
        block="parallel",
        norm="layer",
        rope=llama.rope(config, theta=500000.0, interleaved=True),
        logit_scale=config.get("logit_scale", 0.0625),
    )
