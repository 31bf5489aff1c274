"""Gemma 2: Gemma with norms after each sublayer, soft-capped scores and logits, a window on every other layer."""

from typing import Any

from runner.engines.native.models import gemma, llama
from runner.engines.native.spec import Config, DecoderSpec

NAMES = llama.NAMES | {
    "norm1_post": "layers.{i}.post_attention_layernorm", "norm2": "layers.{i}.pre_feedforward_layernorm",
    "norm2_post": "layers.{i}.post_feedforward_layernorm",
}  # fmt: skip


def spec(config: Config, **changes: Any) -> DecoderSpec:
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(config["num_hidden_layers"])]
    return gemma.spec(
        config,
        block="sandwich",
        scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        windows=llama.windows(config, default=4096, kinds=kinds),
        attn_softcap=config.get("attn_logit_softcapping", 50.0),
        logit_softcap=config.get("final_logit_softcapping", 30.0),
        **changes,
    )
