"""Mistral: LLaMA with a sliding window where config.json has one."""

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec


def spec(config: Config) -> DecoderSpec:
    return llama.spec(config, windows=llama.windows(config, default=4096))
