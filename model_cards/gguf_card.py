"""What a GGUF file says about its model, as fields of a ModelCard.

Owns the meaning of the metadata keys. Does not name the model and does not look for files beside it (resolve.py).
"""

from __future__ import annotations

import math
from typing import Any

from model_cards.card import TokenizerRef
from model_cards.errors import TokenizerError
from model_cards.gguf import GgufFile
from model_cards.gguf_vocab import GgufVocab, make_vocab

_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_DETAILS = {
    "block_count": "layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "heads",
    "attention.head_count_kv": "kv_heads",
    "expert_count": "experts",
    "expert_used_count": "experts_used",
    "pooling_type": "pooling_type",
}
_GENERAL = ("name", "basename", "size_label", "license", "finetune", "organization")


_SAMPLING_NAMES = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def fields_from_gguf(gguf: GgufFile) -> dict[str, Any]:
    """Keyword arguments for ModelCard out of `gguf`'s metadata and tensor headers.

    A file without a tokenizer, or with one that is not supported, still has fields: `tokenizer` is None then and
    `details["tokenizer_error"]` says why. Raises ModelFileError where the file is cut off or metadata has wrong types.
    """
    architecture = gguf.architecture
    fields: dict[str, Any] = {
        "architecture": architecture,
        "context_length": max(0, gguf.get(f"{architecture}.context_length", int, 0)),
        "chat_template": gguf.get(_TEMPLATE, str) or None,
        "named_templates": _named_templates(gguf),
        "sampling": _sampling(gguf),
        "details": _details(gguf),
        "tokenizer": None,
    }
    try:
        fields.update(_vocab_fields(gguf, make_vocab(gguf)))
    except TokenizerError as error:
        fields["details"]["tokenizer_error"] = str(error)
    return fields


def _vocab_fields(gguf: GgufFile, vocab: GgufVocab) -> dict[str, Any]:
    tokens = {name: vocab.tokens[index] for name, index in vocab.special.items()}
    return {
        "vocab_size": len(vocab.tokens),
        "bos_token_id": vocab.special.get("bos"),
        "eos_token_ids": vocab.end_ids,
        "add_bos": vocab.add_bos and "bos" in vocab.special,
        "add_eos": vocab.add_eos and "eos" in vocab.special,
        "special_tokens": {ours: tokens[theirs] for theirs, ours in _TEMPLATE_NAMES.items() if theirs in tokens},
        "tokenizer": TokenizerRef(kind="gguf", path=str(gguf.path)),
    }


def _sampling(gguf: GgufFile) -> dict[str, Any]:
    """The author's defaults (`general.sampling.*`, as llama.cpp reads them); what is no usable number is left out."""
    given = {ours: gguf.metadata.get(f"general.sampling.{theirs}") for theirs, ours in _SAMPLING_NAMES.items()}
    return {
        name: value
        for name, value in given.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    }


def _named_templates(gguf: GgufFile) -> dict[str, str]:
    prefix = _TEMPLATE + "."
    return {key.removeprefix(prefix): gguf.get(key, str) for key in gguf.metadata if key.startswith(prefix)}


def _details(gguf: GgufFile) -> dict[str, Any]:
    details: dict[str, Any] = {"format": f"GGUF v{gguf.version}", "file_size": gguf.file_size}
    if len(gguf.shards) > 1:
        details["shards"] = len(gguf.shards)
    if gguf.tensors:
        details |= {"parameters": gguf.num_parameters, "bytes_by_type": gguf.bytes_by_type}
    if gguf.quantization is not None:
        details["quantization"] = gguf.quantization
    for name in _GENERAL:
        value = gguf.metadata.get(f"general.{name}")
        if isinstance(value, str) and value:
            details[name] = value
    for key, name in _DETAILS.items():
        value = gguf.metadata.get(f"{gguf.architecture}.{key}")
        if isinstance(value, int):
            details[name] = value
    for name in ("model", "pre"):
        value = gguf.metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(value, str):
            details[f"tokenizer_{name}"] = value
    return details
