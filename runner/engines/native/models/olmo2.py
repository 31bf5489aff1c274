"""OLMo 2: LLaMA with the norms behind the sublayers, and q and k normalised over all heads."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec

NAMES = llama.NAMES | {"norm1": "layers.{i}.post_attention_layernorm",
                       "norm2": "layers.{i}.post_feedforward_layernorm"}  # fmt: skip


def spec(config: Config) -> DecoderSpec:
    return llama.spec({"norm_eps": 1e-5, **config}, block="post_norm", qk_norm="full")
