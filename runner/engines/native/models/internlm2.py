"""InternLM2 and 2.5: LLaMA with one projection for groups of q heads and their k and v."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec
from runner.engines.native.weights import Names

NAMES = Names({
    "embed": "tok_embeddings", "norm": "norm", "head": "output",
    "norm1": "layers.{i}.attention_norm", "norm2": "layers.{i}.ffn_norm",
    "attn.qkv": "layers.{i}.attention.wqkv", "attn.out": "layers.{i}.attention.wo",
    "mlp.gate": "layers.{i}.feed_forward.w1", "mlp.up": "layers.{i}.feed_forward.w3",
    "mlp.down": "layers.{i}.feed_forward.w2",
}, qkv_layout="grouped")  # fmt: skip


def spec(config: Config) -> DecoderSpec:
    return llama.spec({**config, "attention_bias": config.get("bias", False)})
