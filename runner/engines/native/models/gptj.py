"""GPT-J: attention and MLP in parallel behind one LayerNorm, part of each head turned in interleaved pairs."""

from runner.engines.native.models import gpt2
from runner.engines.native.spec import Config, DecoderSpec, RopeSpec
from runner.engines.native.weights import Names

_PARTS = {f"attn.{part}": f"h.{{i}}.attn.{part}_proj" for part in ("q", "k", "v", "out")}
NAMES = Names(_PARTS | {
    "embed": "wte", "norm": "ln_f", "head": "lm_head", "norm1": "h.{i}.ln_1", "mlp.up": "h.{i}.mlp.fc_in",
    "mlp.down": "h.{i}.mlp.fc_out",
})  # fmt: skip


def spec(config: Config) -> DecoderSpec:
    config = {"tie_word_embeddings": False, "attention_bias": False, **config}
    rope = RopeSpec(dim=config.get("rotary_dim", 64) or 0, interleaved=True)
    return gpt2.base(config, block="parallel", rope=rope, head_bias=True)
