"""GLM-4 (0414): norms around each sublayer, half of each head turned in interleaved pairs, fused gate_up."""

from runner.engines.native.models import glm
from runner.engines.native.spec import Config, DecoderSpec

NAMES = glm.NAMES | {"norm1_post": "layers.{i}.post_self_attn_layernorm",
                     "norm2_post": "layers.{i}.post_mlp_layernorm"}  # fmt: skip


def spec(config: Config) -> DecoderSpec:
    return glm.spec(config, block="sandwich")
