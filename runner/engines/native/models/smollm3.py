"""SmolLM3: LLaMA, where some layers have no rotary positions."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec


def spec(config: Config) -> DecoderSpec:
    """`no_rope_layers` holds 0 for a layer without."""
    layers, every = range(config["num_hidden_layers"]), config.get("no_rope_layer_interval", 4)
    has_rope = config.get("no_rope_layers") or [(layer + 1) % every for layer in layers]
    without = frozenset(layer for layer in layers if not has_rope[layer])
    kinds = ["sliding_attention" if layer in without else "full_attention" for layer in layers]
    return llama.spec(
        {"tie_word_embeddings": True, **config},
        rope=llama.rope(config, theta=2e6),
        no_rope_layers=without,
        windows=llama.windows(config, kinds=kinds) if config.get("use_sliding_window") else (),
    )
