"""Gemma (1): LLaMA with (1 + weight) norms, GELU, scaled embeddings and a tied head."""

from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec


def spec(config: Config, **changes: Any) -> DecoderSpec:
    """`hidden_act` says "gelu" in old files and means the tanh form."""
    config = {"head_dim": 256, "tie_word_embeddings": True, **config, "hidden_act": "gelu_pytorch_tanh"}
    return llama.spec(config, norm_plus_one=True, embed_scale=config["hidden_size"] ** 0.5, **changes)
