"""Qwen2 and Qwen2.5: LLaMA with biases on q, k and v."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec


def spec(config: Config) -> DecoderSpec:
    return llama.spec(config, qkv_bias=True, out_bias=False, windows=windows(config))


def windows(config: Config) -> tuple[int | None, ...]:
    """Off by default; else of the layers from `max_window_layers` on."""
    if not config.get("use_sliding_window"):
        return ()
    first = config.get("max_window_layers", 28)
    layers = range(config["num_hidden_layers"])
    kinds = ["full_attention" if layer < first else "sliding_attention" for layer in layers]
    return llama.windows(config, default=4096, kinds=kinds)
