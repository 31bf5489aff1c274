"""GPT-NeoX (Pythia, Dolly): attention and MLP in parallel behind two LayerNorms, part of each head turned."""

from runner.engines.native.models import gpt2, llama
from runner.engines.native.spec import Config, DecoderSpec
from runner.engines.native.weights import Names

NAMES = Names({
    "embed": "embed_in", "norm": "final_layer_norm", "head": "embed_out",
    "norm1": "layers.{i}.input_layernorm", "norm2": "layers.{i}.post_attention_layernorm",
    "attn.qkv": "layers.{i}.attention.query_key_value", "attn.out": "layers.{i}.attention.dense",
    "mlp.up": "layers.{i}.mlp.dense_h_to_4h", "mlp.down": "layers.{i}.mlp.dense_4h_to_h",
}, prefixes=("gpt_neox.", ""), qkv_layout="grouped")  # fmt: skip


def spec(config: Config) -> DecoderSpec:
    config = {"hidden_act": "gelu", "tie_word_embeddings": False, **config}
    block = "parallel_two_norms" if config.get("use_parallel_residual", True) else "sequential"
    return gpt2.base(config, block=block, rope=llama.rope(config, share=0.25))
