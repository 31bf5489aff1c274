"""OPT: learned positions that begin at 2, LayerNorm, ReLU."""

from runner.engines.native.models import gpt2
from runner.engines.native.spec import Config, DecoderSpec
from runner.engines.native.weights import Names

NAMES = Names({
    "embed": "embed_tokens", "position": "embed_positions", "norm": "final_layer_norm", "head": "lm_head",
    "norm1": "layers.{i}.self_attn_layer_norm", "norm2": "layers.{i}.final_layer_norm",
    "attn.q": "layers.{i}.self_attn.q_proj", "attn.k": "layers.{i}.self_attn.k_proj",
    "attn.v": "layers.{i}.self_attn.v_proj", "attn.out": "layers.{i}.self_attn.out_proj",
    "mlp.up": "layers.{i}.fc1", "mlp.down": "layers.{i}.fc2",
}, prefixes=("model.decoder.", "decoder.", ""))  # fmt: skip


def supports(config: Config) -> bool:
    """Not the 350M model: norms behind the sublayers, an embedding narrower than the rest."""
    is_plain = config.get("layer_norm_elementwise_affine", True) and not config.get("_remove_final_layer_norm", False)
    width = config.get("word_embed_proj_dim") or config["hidden_size"]
    return is_plain and config.get("do_layer_norm_before", True) and width == config["hidden_size"]


def spec(config: Config) -> DecoderSpec:
    bias = config.get("enable_bias", True)
    config = {"hidden_act": "relu", "attention_bias": bias, "mlp_bias": bias, **config}
    return gpt2.base(config, position="learned", position_offset=2)
