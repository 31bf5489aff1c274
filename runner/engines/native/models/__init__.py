"""Model families, found by file name: the `model_type` of config.json, lower case, `-` as `_`.

A family file has `spec(config) -> DecoderSpec`; `NAMES` where its checkpoints do not name tensors as LLaMA's do; and
`supports(config) -> bool` where it runs only some of its kind. Whatever config.json calls a number, a family finds it
under the name of LLaMA's. Those that are LLaMA under another name are listed here.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from model_cards.errors import ModelFileError
from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec
from runner.engines.native.weights import Names

_ALIASES = {
    "xverse": "llama", "aquila": "llama", "yi": "llama", "code_llama": "llama", "vicuna": "llama",
    "gemma3": "gemma3_text", "baichuan2": "baichuan",
}  # fmt: skip
_SPELLINGS = {
    "vocab_size": ("padded_vocab_size",), "hidden_size": ("n_embd", "d_model", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"), "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "multi_query_group_num"), "head_dim": ("kv_channels",),
    "intermediate_size": ("n_inner", "ffn_hidden_size", "ffn_dim"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon"),
    "rope_theta": ("rotary_emb_base",), "partial_rotary_factor": ("rotary_pct", "rope_pct"),
    "hidden_act": ("activation_function", "activation"), "num_experts": ("num_local_experts",),
}  # fmt: skip
"""What a family reads -> what config.json may call it."""
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Family:
    """A family file."""

    module: Any

    def spec(self, config: Config) -> DecoderSpec:
        """Of a config.json as it is. Raises EngineStartFailed for what is unknown, ModelFileError for what is wrong."""
        spelled = _spelled(config)
        _check_sizes(spelled)
        try:
            return self.module.spec(spelled)  # type: ignore[no-any-return]
        except KeyError as error:
            raise ModelFileError(f"config.json lacks {error.args[0]}: it is incomplete, or of another model") from None

    @property
    def names(self) -> Names:
        """Of checkpoints."""
        return getattr(self.module, "NAMES", llama.NAMES)


def find_family(config: Config) -> Family | None:
    """The family of a config.json, None where there is none (models/_transformers.py may run it)."""
    name = str(config.get("model_type", "")).lower().replace("-", "_")
    name = _ALIASES.get(name, name)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or importlib.util.find_spec(f"{__name__}.{name}") is None:
        return None
    module = importlib.import_module(f"{__name__}.{name}")
    return Family(module) if getattr(module, "supports", lambda _: True)(_spelled(config)) else None


def _check_sizes(config: Config) -> None:
    """Whatever a family reads first; what is not there at all is told by its name."""
    for name in _SIZES:
        value = config.get(name, 1)
        if type(value) is not int or value < 1:
            raise ModelFileError(f"config.json: {name} is {value!r}; a whole number from 1 is wanted")


def _spelled(config: Config) -> Config:
    """With the names that families read."""
    found = {
        name: next((config[other] for other in others if config.get(other) is not None), None)
        for name, others in _SPELLINGS.items()
        if config.get(name) is None
    }
    return config | {name: value for name, value in found.items() if value is not None}
