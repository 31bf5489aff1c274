"""Falcon. 7B: one head of K and V, attention and MLP in parallel behind one LayerNorm. 40B and 180B: groups of heads,
two LayerNorms. RW-1B: ALiBi, one after the other."""

from typing import Literal

from runner.engines.native.models import bloom, gpt2
from runner.engines.native.models._alibi import alibi_slopes
from runner.engines.native.spec import Config, DecoderSpec

# without groups and with one head of K and V the grouped layout is [q | k | v]
NAMES = bloom.NAMES | {"norm1": ("h.{i}.input_layernorm", "h.{i}.ln_attn"),
                       "norm2": ("h.{i}.post_attention_layernorm", "h.{i}.ln_mlp")}  # fmt: skip


def spec(config: Config) -> DecoderSpec:
    """ALiBi is added before scores are scaled, so that slopes are scaled too."""
    heads, has_alibi, bias = config["num_attention_heads"], config.get("alibi", False), config.get("bias", False)
    scale = (config["hidden_size"] // heads) ** -0.5
    return gpt2.base(
        {"hidden_act": "gelu", **config},
        num_kv_heads=_kv_heads(config, heads),
        block=_block(config),
        position="alibi" if has_alibi else "rope",
        alibi_slopes=tuple(slope * scale for slope in alibi_slopes(heads)) if has_alibi else (),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
    )


def _kv_heads(config: Config, heads: int) -> int:
    if config.get("new_decoder_architecture", False):
        return int(config.get("num_key_value_heads") or heads)
    return 1 if config.get("multi_query", True) else heads


def _block(config: Config) -> Literal["sequential", "parallel", "parallel_two_norms"]:
    if config.get("new_decoder_architecture", False):
        return "parallel" if config.get("num_ln_in_parallel_attn") == 1 else "parallel_two_norms"
    return "parallel" if config.get("parallel_attn", True) else "sequential"
