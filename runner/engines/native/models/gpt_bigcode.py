"""GPT-BigCode (StarCoder, SantaCoder): GPT-2 with one head of K and V, weights stored [out, in]."""

from dataclasses import replace

from runner.engines.native.models import gpt2
from runner.engines.native.spec import Config, DecoderSpec

NAMES = replace(gpt2.NAMES, transposed=frozenset(), qkv_layout="grouped")
"""Without multi_query each head has its q, k and v together."""


def spec(config: Config) -> DecoderSpec:
    num_kv_heads = 1 if config.get("multi_query", True) else config["num_attention_heads"]
    return gpt2.spec({"hidden_act": "gelu_pytorch_tanh", **config}, num_kv_heads=num_kv_heads)
