"""ChatGLM2, ChatGLM3 and GLM-4-9B in its first form: LLaMA with few heads of K and V, half of each head turned in
interleaved pairs, biased qkv, fused gate_up. (ChatGLM-6B, the first, is another architecture.)"""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec
from runner.engines.native.weights import Names

_LAYER = "encoder.layers.{i}"
NAMES = Names({
    "embed": "embedding.word_embeddings", "norm": "encoder.final_layernorm", "head": "output_layer",
    "norm1": f"{_LAYER}.input_layernorm", "norm2": f"{_LAYER}.post_attention_layernorm",
    "attn.qkv": f"{_LAYER}.self_attention.query_key_value", "attn.out": f"{_LAYER}.self_attention.dense",
    "mlp.gate_up": f"{_LAYER}.mlp.dense_h_to_4h", "mlp.down": f"{_LAYER}.mlp.dense_4h_to_h",
})  # fmt: skip


def supports(config: Config) -> bool:
    """Not the first ChatGLM, nor a residual behind the norm."""
    return "padded_vocab_size" in config and not config.get("apply_residual_connection_post_layernorm", False)


def spec(config: Config) -> DecoderSpec:
    """rope_ratio stretches the base (chatglm3-6b-32k, glm-4-9b)."""
    bias, has_groups = config.get("add_bias_linear", False), config.get("multi_query_attention", False)
    return llama.spec(
        {"norm_eps": 1e-5, **config, "attention_bias": bias, "mlp_bias": bias},
        vocab_size=config["padded_vocab_size"],
        num_kv_heads=config["num_key_value_heads"] if has_groups else config["num_attention_heads"],
        norm="rms" if config.get("rmsnorm", True) else "layer",
        norm_bias=True,
        final_norm=config.get("post_layer_norm", True),
        rope=llama.rope(config, theta=10000.0 * config.get("rope_ratio", 1.0), share=0.5, interleaved=True),
        qkv_bias=bias or config.get("add_qkv_bias", False),
    )
