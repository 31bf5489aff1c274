"""Qwen (1): LLaMA with fused biased qkv under GPT-2-like names.

Its stretching beyond `seq_length` (dynamic NTK, log-n scaling) is not done: within `seq_length` neither has an effect.
"""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec
from runner.engines.native.weights import Names

NAMES = Names({
    "embed": "wte", "norm": "ln_f", "head": "lm_head", "norm1": "h.{i}.ln_1", "norm2": "h.{i}.ln_2",
    "attn.qkv": "h.{i}.attn.c_attn", "attn.out": "h.{i}.attn.c_proj",
    "mlp.up": "h.{i}.mlp.w1", "mlp.gate": "h.{i}.mlp.w2", "mlp.down": "h.{i}.mlp.c_proj",
})  # fmt: skip
"""The MLP is c_proj(w1(x) * silu(w2(x)))."""


def spec(config: Config) -> DecoderSpec:
    bias = not config.get("no_bias", True)
    return llama.spec(
        {**config, "attention_bias": bias, "mlp_bias": bias, "num_key_value_heads": None},
        intermediate_size=config["intermediate_size"] // 2,
        max_position=config.get("seq_length") or config.get("max_position_embeddings", 2048),
        qkv_bias=True,
    )
