"""BLOOM: ALiBi in place of positions, a LayerNorm behind the embedding."""

from runner.engines.native.models import gpt2
from runner.engines.native.models._alibi import alibi_slopes
from runner.engines.native.spec import Config, DecoderSpec
from runner.engines.native.weights import Names

NAMES = Names({
    "embed": "word_embeddings", "embed_norm": "word_embeddings_layernorm", "norm": "ln_f", "head": "lm_head",
    "norm1": "h.{i}.input_layernorm", "norm2": "h.{i}.post_attention_layernorm",
    "attn.qkv": "h.{i}.self_attention.query_key_value", "attn.out": "h.{i}.self_attention.dense",
    "mlp.up": "h.{i}.mlp.dense_h_to_4h", "mlp.down": "h.{i}.mlp.dense_4h_to_h",
}, qkv_layout="grouped")  # fmt: skip


def spec(config: Config) -> DecoderSpec:
    return gpt2.base(
        config,
        residual_post_norm=config.get("apply_residual_connection_post_layernorm", False),
        embed_norm=True,
        position="alibi",
        alibi_slopes=alibi_slopes(config["num_attention_heads"]),
    )
