"""StableLM: LLaMA with LayerNorm and a quarter of each head turned; perhaps attention and MLP in parallel."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec


def supports(config: Config) -> bool:
    """Not with a LayerNorm on each head of q and k (StableLM-2-12B)."""
    return not config.get("qk_layernorm", False)


def spec(config: Config) -> DecoderSpec:
    return llama.spec(
        {"norm_eps": 1e-5, **config},
        block="parallel" if config.get("use_parallel_residual", False) else "sequential",
        norm="layer",
        norm_bias=True,
        rope=llama.rope(config, share=0.25),
        qkv_bias=config.get("use_qkv_bias", False),
    )
