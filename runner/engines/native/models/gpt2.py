"""GPT-2: learned positions, LayerNorm, weights stored [in, out]. Other families of its kind start from base()."""

from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec
from runner.engines.native.weights import Names

NAMES = Names({
    "embed": "wte", "position": "wpe", "norm": "ln_f", "head": "lm_head",
    "norm1": "h.{i}.ln_1", "norm2": "h.{i}.ln_2", "attn.qkv": "h.{i}.attn.c_attn", "attn.out": "h.{i}.attn.c_proj",
    "mlp.up": "h.{i}.mlp.c_fc", "mlp.down": "h.{i}.mlp.c_proj",
}, transposed=frozenset({"attn.qkv", "attn.out", "mlp.up", "mlp.down"}))  # fmt: skip
_DEFAULTS = {"norm_eps": 1e-5, "hidden_act": "gelu_new", "attention_bias": True, "mlp_bias": True,
             "tie_word_embeddings": True}  # fmt: skip


def supports(config: Config) -> bool:
    """Not Mistral's stanford variants, whose scores are scaled by the layer's number."""
    return not config.get("scale_attn_by_inverse_layer_idx", False)


def spec(config: Config, **changes: Any) -> DecoderSpec:
    scale = None if config.get("scale_attn_weights", True) else 1.0
    return base({"max_position_embeddings": 1024, **config}, position="learned", scale=scale, **changes)


def base(config: Config, **changes: Any) -> DecoderSpec:
    """What GPT-2 shares with its kind (LayerNorm, biases, no gate, a tied head), and rotary positions."""
    size = config.get("intermediate_size") or 4 * config["hidden_size"]
    changes = {"norm": "layer", "norm_bias": True, "gated": False} | changes
    return llama.spec({**_DEFAULTS, **config, "intermediate_size": size}, **changes)
