"""Phi-3, 3.5 and 4: LLaMA with fused qkv and gate_up, LongRoPE, perhaps a sliding window."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec

NAMES = llama.NAMES | {
    "attn.qkv": "layers.{i}.self_attn.qkv_proj", "mlp.gate_up": "layers.{i}.mlp.gate_up_proj",
}  # fmt: skip


def spec(config: Config) -> DecoderSpec:
    return llama.spec({"norm_eps": 1e-5, **config}, windows=llama.windows(config))
