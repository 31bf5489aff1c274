"""Child side: a GGUF file's metadata as the Hugging Face folder that vLLM wants: config.json, tokenizer, no weights.

Only what is understood whole: a file that says more than these keys needs its folder (--model-config), since a rotary
scaling or a window that is left out gives wrong answers in silence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_cards.gguf import GgufFile
from runner.errors import EngineStartFailed

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Architectures whose configuration is made here -> transformers' class."""
_KEYS = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}  # fmt: skip
"""GGUF's key behind the architecture -> config.json's."""
_HEAD_KEYS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
"""All three must be the size of a head."""
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_DTYPES = {"F32": "float32", "F16": "float16"}


def make_folder(path: Path, folder: Path) -> None:
    """Write config.json, tokenizer.json and tokenizer_config.json. Raises EngineStartFailed, CardError."""
    with GgufFile.open(path) as file:
        config = make_config(file)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    _write_tokenizer(path, folder)


def make_config(file: GgufFile) -> dict[str, Any]:
    """config.json. Raises EngineStartFailed for a file that says more than is understood here."""
    architecture = file.architecture or ""
    assert file.tensors is not None
    shapes = {info.name: info.shape for info in file.tensors}
    said = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    unknown = sorted(said.keys() - {*_KEYS, *_HEAD_KEYS, "vocab_size"})
    unknown += [name for name in _ROPE_TENSORS if name in shapes]
    if architecture not in _CLASSES or unknown:
        raise _needs_folder(file, unknown[0] if unknown else f"the architecture {architecture}")
    missing = [key for key in _KEYS if key not in said and key not in ("rope.freq_base", "attention.head_count_kv")]
    if missing:
        raise EngineStartFailed(f"{file.path.name} lacks metadata {architecture}.{missing[0]}")
    config: dict[str, Any] = {name: said[key] for key, name in _KEYS.items() if key in said}
    head_dim = said.get("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
    odd = next((key for key in _HEAD_KEYS if said.get(key, head_dim) != head_dim), None)
    if odd is not None:
        raise _needs_folder(file, odd)
    return config | {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "vocab_size": shapes["token_embd.weight"][-1],
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "torch_dtype": _DTYPES.get(next(iter(file.bytes_by_type), ""), "bfloat16"),
    }


def _needs_folder(file: GgufFile, what: str) -> EngineStartFailed:
    return EngineStartFailed(
        f"{file.path.name}: out=vllm makes no configuration of a GGUF file with {what}",
        hint="name the Hugging Face folder of this model with --model-config, or use out=llamacpp",
    )


def _write_tokenizer(path: Path, folder: Path) -> None:
    """For structured output inside EngineCore; prompts are encoded by the launcher."""
    from model_cards.resolve import resolve
    from model_cards.tokenizer import load_tokenizer

    card = resolve(str(path), download=False)
    (folder / "tokenizer.json").write_text(load_tokenizer(card).to_json(), encoding="utf-8")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **card.special_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
