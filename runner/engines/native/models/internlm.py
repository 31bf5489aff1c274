"""InternLM (1): LLaMA with biases on all four projections of attention."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec


def spec(config: Config) -> DecoderSpec:
    """`rotary` is the older spelling of rope_theta and rope_scaling."""
    rotary = config.get("rotary") or {}
    if rotary and not config.get("rope_scaling"):
        kind = "dynamic" if rotary.get("type") == "dynamic" else "default"
        scaling = {"type": kind, "factor": rotary.get("scaling_factor", 1.0)}
        config = {**config, "rope_theta": rotary.get("base", 10000.0), "rope_scaling": scaling}
    return llama.spec({**config, "attention_bias": config.get("bias", True)})
