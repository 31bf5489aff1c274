"""StarCoder2: LLaMA with LayerNorm, biases, no gate, perhaps a sliding window."""

from runner.engines.native.models import gpt2, llama
from runner.engines.native.spec import Config, DecoderSpec

NAMES = llama.NAMES | {"mlp.up": "layers.{i}.mlp.c_fc", "mlp.down": "layers.{i}.mlp.c_proj"}


def spec(config: Config) -> DecoderSpec:
    bias = config.get("use_bias", True)
    config = {"hidden_act": "gelu_pytorch_tanh", "attention_bias": bias, "mlp_bias": bias, **config}
    return gpt2.base(config, windows=llama.windows(config))
