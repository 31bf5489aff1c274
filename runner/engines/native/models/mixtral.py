"""Mixtral: Mistral with experts."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec, MoeSpec

NAMES = llama.NAMES | {
    "moe.router": "layers.{i}.block_sparse_moe.gate",
    "moe.experts.gate": "layers.{i}.block_sparse_moe.experts.{e}.w1",
    "moe.experts.up": "layers.{i}.block_sparse_moe.experts.{e}.w3",
    "moe.experts.down": "layers.{i}.block_sparse_moe.experts.{e}.w2",
}


def spec(config: Config) -> DecoderSpec:
    moe = MoeSpec(config.get("num_experts", 8), config.get("num_experts_per_tok", 2), config["intermediate_size"])
    return llama.spec(config, moe=moe, rope=llama.rope(config, theta=1e6), windows=llama.windows(config))
