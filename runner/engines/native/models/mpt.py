"""MPT: ALiBi, LayerNorm without bias."""

from runner.engines.native.models import gpt2
from runner.engines.native.models._alibi import alibi_slopes
from runner.engines.native.spec import Config, DecoderSpec
from runner.engines.native.weights import Names

NAMES = Names({
    "embed": "wte", "norm": "norm_f", "head": "lm_head", "norm1": "blocks.{i}.norm_1", "norm2": "blocks.{i}.norm_2",
    "attn.qkv": "blocks.{i}.attn.Wqkv", "attn.out": "blocks.{i}.attn.out_proj",
    "mlp.up": "blocks.{i}.ffn.up_proj", "mlp.down": "blocks.{i}.ffn.down_proj",
})  # fmt: skip


def supports(config: Config) -> bool:
    """Not the variants of MosaicML's own code that transformers does not have either."""
    attention = config.get("attn_config") or {}
    return (
        attention.get("alibi", True)
        and attention.get("attn_type", "multihead_attention") == "multihead_attention"
        and not attention.get("qk_ln", False)
        and not attention.get("prefix_lm", False)
        and config.get("no_bias", True)
    )


def spec(config: Config) -> DecoderSpec:
    attention = config.get("attn_config") or {}
    return gpt2.base(
        {**config, "hidden_act": "gelu", "attention_bias": False, "mlp_bias": False},
        intermediate_size=int(config.get("expansion_ratio", 4) * config["hidden_size"]),
        norm_bias=False,
        position="alibi",
        alibi_slopes=alibi_slopes(config["num_attention_heads"], attention.get("alibi_bias_max", 8)),
        scale=attention.get("softmax_scale"),
        clip_qkv=attention.get("clip_qkv"),
    )
