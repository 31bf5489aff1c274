"""A GGUF file's metadata as a config.json that the family files (models/) read.

Owns what the keys of each architecture mean (llama.cpp: src/models/*.cpp, conversion/*.py). Reads no weights: what only
tensors tell (biases, tied heads) is gguf_weights.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model_cards.errors import ModelFileError
from model_cards.gguf import GgufFile
from runner.errors import EngineStartFailed

MODEL_TYPES = {
    "llama": "llama", "mistral": "mistral", "qwen": "qwen", "qwen2": "qwen2", "qwen3": "qwen3", "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text", "phi2": "phi",
    "phi3": "phi3", "gpt2": "gpt2", "gptneox": "gpt_neox", "gptj": "gptj", "falcon": "falcon", "bloom": "bloom",
    "mpt": "mpt", "starcoder": "gpt_bigcode", "starcoder2": "starcoder2", "stablelm": "stablelm", "olmo2": "olmo2",
    "smollm3": "smollm3", "granite": "granite", "glm4": "glm4", "chatglm": "chatglm", "command-r": "cohere",
    "internlm2": "internlm2", "baichuan": "baichuan", "xverse": "xverse",
}  # fmt: skip
"""general.architecture -> model_type."""

_KEYS = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length", "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base", "rope_local_base_freq": "rope.freq_base_swa", "rotary_dim": "rope.dimension_count",
    "sliding_window": "attention.sliding_window", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping", "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count", "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length", "norm_topk_prob": "expert_weights_norm",
    "use_parallel_residual": "use_parallel_residual", "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale", "logit_scale": "logit_scale",
}  # fmt: skip
"""What a family reads -> key behind the architecture."""

Factors = Callable[[str], list[float] | None]
"""Name of a small tensor -> its values, None where the file lacks it."""


def make_config(file: GgufFile, tensors: set[str], vocab_size: int, factors: Factors) -> dict[str, Any]:
    """config.json. Raises EngineStartFailed for an architecture that has no family."""
    name = file.architecture or ""
    if name not in MODEL_TYPES:
        raise EngineStartFailed(
            f"out=native cannot run GGUF files of architecture {name!r}; it can: {', '.join(sorted(MODEL_TYPES))}",
            hint="use out=llamacpp, or the model's Hugging Face folder",
        )
    config: dict[str, Any] = {"rope_theta": 10000.0, "model_type": MODEL_TYPES[name], "vocab_size": vocab_size}
    config |= {ours: value for ours, key in _KEYS.items() if (value := _scalar(file, f"{name}.{key}")) is not None}
    config["norm_eps"] = next(
        (eps for kind in ("_rms", "") if (eps := _scalar(file, f"{name}.attention.layer_norm{kind}_epsilon"))), 1e-5
    )
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    _check(file, config)
    scaling = _rope_scaling(file, name, factors)
    config |= {"rope_scaling": scaling} if scaling else {}
    return config | (_FAMILIES[name](file, config, tensors) if name in _FAMILIES else {})


def _scalar(file: GgufFile, key: str) -> Any:
    """None where there is no such key; an array of equal numbers is that number."""
    value = file.metadata.get(key)
    if value is None or isinstance(value, int | float | str):
        return value
    values = set(value)
    if len(values) > 1:
        raise EngineStartFailed(
            f"{file.path}: {key} differs from layer to layer, which out=native cannot run", hint="use out=llamacpp"
        )
    return values.pop() if values else None


def _check(file: GgufFile, config: dict[str, Any]) -> None:
    for ours in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if not isinstance(config.get(ours), int):
            raise ModelFileError(f"{file.path} lacks metadata {file.architecture}.{_KEYS[ours]}; it has no such number")


def _rope_scaling(file: GgufFile, name: str, factors: Factors) -> dict[str, Any] | None:
    """Of the metadata; factors for each frequency (LLaMA 3, Phi-3) are in tensors."""
    key = f"{name}.rope.scaling."
    kind, original = _scalar(file, key + "type"), _scalar(file, key + "original_context_length")
    scaling = {"factor": _scalar(file, key + "factor") or 1.0, "original_max_position_embeddings": original}
    attention = _scalar(file, key + "attn_factor") or _scalar(file, key + "yarn_attn_factor")
    long, short = factors("rope_factors_long.weight"), factors("rope_factors_short.weight")
    plain = factors("rope_freqs.weight")
    if long and short:
        return scaling | {"rope_type": "longrope", "long_factor": long, "short_factor": short,
                          "attention_factor": attention or 1.0}  # fmt: skip
    if plain:
        return {"rope_type": "longrope", "long_factor": plain, "short_factor": plain, "attention_factor": 1.0,
                "original_max_position_embeddings": original}  # fmt: skip
    if kind not in ("linear", "yarn"):
        return None
    betas = {ours: _scalar(file, key + "yarn_" + ours) for ours in ("beta_fast", "beta_slow")}
    return scaling | betas | {"rope_type": kind} | ({"attention_factor": attention} if attention else {})


def _gemma(file: GgufFile, config: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    """llama.cpp knows Gemma's 27B models, whose scores are scaled otherwise, by their number of layers."""
    is_27b = config["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}.get(file.architecture or "")
    per_head = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": per_head if is_27b else config.get("head_dim", per_head)}


def _moe(file: GgufFile, config: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    size = config["intermediate_size"]
    return {
        "norm_topk_prob": config.get("norm_topk_prob", file.architecture == "qwen3moe"),
        "moe_intermediate_size": config.get("moe_intermediate_size") or size // config["num_experts_per_tok"],
        "shared_expert_intermediate_size": config.get("shared_expert_intermediate_size") or size,
    }


def _falcon(file: GgufFile, config: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    has_two = "blk.0.attn_norm_2.weight" in tensors
    is_new = has_two or config["num_key_value_heads"] > 1
    return {"new_decoder_architecture": is_new, "num_ln_in_parallel_attn": 2 if has_two else 1}


def _mpt(file: GgufFile, config: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    largest = _scalar(file, "mpt.attention.max_alibi_bias")
    clip = _scalar(file, "mpt.attention.clamp_kqv")
    return {"attn_config": {"alibi": largest != 0.0, "alibi_bias_max": largest or 8, "clip_qkv": clip}}


def _stablelm(file: GgufFile, config: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    """The metadata's use_parallel_residual was wrong for years; llama.cpp looks at the tensors."""
    has_qk_norm = "blk.0.attn_q_norm.weight" in tensors
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors, "qk_layernorm": has_qk_norm}


def _baichuan(file: GgufFile, config: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    """13B has ALiBi; the family knows it by the missing max_position_embeddings."""
    length = config.get("max_position_embeddings", 4096)
    is_13b = config["num_hidden_layers"] == 40
    return {"max_position_embeddings": None, "model_max_length": length} if is_13b else {}


_FAMILIES: dict[str, Callable[[GgufFile, dict[str, Any], set[str]], dict[str, Any]]] = {
    "gemma2": _gemma, "gemma3": _gemma, "qwen2moe": _moe, "qwen3moe": _moe, "falcon": _falcon,
    "mpt": _mpt, "stablelm": _stablelm, "baichuan": _baichuan,
    "llama": lambda file, config, tensors: {"model_type": "mixtral"} if config.get("num_experts") else {},
    "starcoder": lambda file, config, tensors: {"multi_query": config["num_key_value_heads"] == 1},
    "chatglm": lambda file, config, tensors: {"multi_query_attention": True, "padded_vocab_size": config["vocab_size"]},
    "command-r": lambda file, config, tensors: {"use_qk_norm": "blk.0.attn_q_norm.weight" in tensors},
}  # fmt: skip
