"""Gemma 3 (text): Gemma 2 with normalised q and k in place of soft caps, five windowed layers to each full one, and
rotary positions of their own for the windowed."""

from runner.engines.native.models import gemma2, llama
from runner.engines.native.spec import Config, DecoderSpec

NAMES = gemma2.NAMES
_DEFAULTS: Config = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                     "max_position_embeddings": 131072, "attn_logit_softcapping": None,
                     "final_logit_softcapping": None}  # fmt: skip
"""Google's files leave these out."""


def spec(config: Config) -> DecoderSpec:
    config = _DEFAULTS | config
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    layers = range(1, config["num_hidden_layers"] + 1)
    kinds = ["full_attention" if layer % every == 0 else "sliding_attention" for layer in layers]
    local = {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
    if "sliding_attention" in (config.get("rope_parameters") or {}):
        local = {"rope_parameters": config["rope_parameters"]}
    return gemma2.spec(
        {**config, "layer_types": config.get("layer_types") or kinds},
        qk_norm="head",
        rope=llama.rope(config, kind="full_attention", theta=1e6),
        rope_local=llama.rope({"head_dim": config["head_dim"], **local}, kind="sliding_attention"),
    )
