"""GLM (glm-4-9b-hf): LLaMA with half of each head turned in interleaved pairs, biased qkv, fused gate_up."""

from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec

NAMES = llama.NAMES | {"mlp.gate_up": "layers.{i}.mlp.gate_up_proj"}


def spec(config: Config, **changes: Any) -> DecoderSpec:
    config = {"head_dim": 128, "attention_bias": True, **config}
    return llama.spec(config, rope=llama.rope(config, share=0.5, interleaved=True), out_bias=False, **changes)
