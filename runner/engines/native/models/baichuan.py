"""Baichuan and Baichuan2: LLaMA with fused qkv. 7B has rope, 13B ALiBi; Baichuan2 normalises the head's rows."""

from runner.engines.native.models import llama
from runner.engines.native.models._alibi import alibi_slopes
from runner.engines.native.spec import Config, DecoderSpec

_VOCAB_2 = 125696
"""Only Baichuan2 has this vocabulary; nothing else in config.json tells the generations apart."""
NAMES = llama.NAMES | {"attn.qkv": "layers.{i}.self_attn.W_pack"}


def spec(config: Config) -> DecoderSpec:
    is_second = config["vocab_size"] == _VOCAB_2 or config["model_type"] == "baichuan2"
    if config.get("max_position_embeddings"):
        return llama.spec(config, normalized_head=is_second)
    # the 13B models state `model_max_length` only: they have no position embedding
    slopes, length = alibi_slopes(config["num_attention_heads"]), config.get("model_max_length", 4096)
    return llama.spec(config, normalized_head=is_second, position="alibi", alibi_slopes=slopes, max_position=length)
