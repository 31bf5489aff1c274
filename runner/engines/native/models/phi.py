"""Phi-1, 1.5 and 2: attention and MLP in parallel behind one LayerNorm, part of each head turned, biases everywhere."""

from runner.engines.native.models import gpt2, llama
from runner.engines.native.spec import Config, DecoderSpec

NAMES = llama.NAMES | {
    "norm": "final_layernorm", "attn.out": "layers.{i}.self_attn.dense", "mlp.up": "layers.{i}.mlp.fc1",
    "mlp.down": "layers.{i}.mlp.fc2",
}  # fmt: skip


def supports(config: Config) -> bool:
    """Not with a LayerNorm on each head of q and k."""
    return not config.get("qk_layernorm", False)


def spec(config: Config) -> DecoderSpec:
    config = {"tie_word_embeddings": False, **config}
    rope = llama.rope(config, share=0.5)
    return gpt2.base(config, block="parallel", rope=rope, head_bias=True)
