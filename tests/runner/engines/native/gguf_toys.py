"""Toy models of transformers as GGUF files, the way llama.cpp's converter makes them.

Names come from the `gguf` package's own table, so that ours is tested against it; what the converter does to weights
and metadata is repeated here (llama.cpp: conversion/*.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

PERMUTED = ("llama", "granite", "smollm3", "internlm2", "baichuan", "xverse")
HEADS_TOGETHER = ("gptneox", "bloom", "falcon")


def write_gguf(
    model: Any, path: Path, arch: str, keys: dict[str, Any] | None = None, *, quantize: str = "F32",
    extra: dict[str, list[float]] | None = None, apart: bool = False,
) -> None:  # fmt: skip
    """`keys` are metadata behind the architecture that general_keys() does not have, `extra` small tensors; `apart`:
    experts are not stacked."""
    folder = path.parent / (path.name + ".hf")
    model.save_pretrained(folder)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model("none")
    for key, value in (general_keys(model.config) | (keys or {})).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}.get(type(value))
        (add or writer.add_float32)(f"{arch}.{key}", value)
    kind = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    weights = stacked(load_file(folder / "model.safetensors"))
    for name, value in (joined(weights) if arch == "qwen" else weights).items():
        name = name.removeprefix("transformer.") if arch == "bloom" else name
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        target = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        value = converted(target, value.float(), arch, model.config)
        if apart and "_exps" in target:
            for number, expert in enumerate(value):
                add_tensor(writer, target.replace("_exps.", f".{number}."), expert, quantize)
        else:
            add_tensor(writer, target, value, quantize)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensor(writer: Any, name: str, value: torch.Tensor, quantize: str) -> None:
    """float32, or quantised where it is a matrix."""
    data = value.contiguous().numpy()
    if quantize == "F32" or value.dim() < 2 or value.shape[-1] % 32:
        writer.add_tensor(name, data)
    else:
        kind = gguf.GGMLQuantizationType[quantize]
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)


def general_keys(config: Any) -> dict[str, Any]:
    """What the converter writes for every architecture."""

    def find(*names: str) -> Any:
        return next((value for name in names if (value := getattr(config, name, None)) is not None), None)

    hidden, heads = config.hidden_size, config.num_attention_heads
    rope = find("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    keys = {
        "vocab_size": config.vocab_size, "block_count": config.num_hidden_layers, "embedding_length": hidden,
        "context_length": find("max_position_embeddings", "max_seq_len", "seq_length") or 64,
        "feed_forward_length": find("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim") or 4 * hidden,
        "attention.head_count": heads, "attention.head_count_kv": find("num_key_value_heads", "num_kv_heads") or heads,
        "attention.layer_norm_rms_epsilon": find("rms_norm_eps"),
        "attention.layer_norm_epsilon": find("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon"),
        "attention.key_length": find("head_dim"), "attention.value_length": find("head_dim"),
        "rope.freq_base": rope.get("rope_theta"), "expert_count": find("num_experts", "num_local_experts"),
        "rope.dimension_count": int((find("head_dim") or hidden // heads) * rope.get("partial_rotary_factor", 1.0)),
        "expert_used_count": find("num_experts_per_tok"), "expert_feed_forward_length": find("moe_intermediate_size"),
        "expert_shared_feed_forward_length": find("shared_expert_intermediate_size"),
        "logit_scale": find("logit_scale"), "attn_logit_softcapping": find("attn_logit_softcapping"),
        "final_logit_softcapping": find("final_logit_softcapping"),
        "attention.sliding_window": find("sliding_window"),
    }  # fmt: skip
    return {key: value for key, value in keys.items() if value is not None}


def stacked(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts in one tensor."""
    found: dict[str, dict[int, torch.Tensor]] = {}
    for name in list(weights):
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(.*)", name)
        if match:
            found.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = weights.pop(name)
    for name, experts in found.items():
        if "block_sparse_moe" in name:  # the table knows Mixtral's stacked experts by this name
            name = name.replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward")
        weights[name] = torch.stack([experts[number] for number in sorted(experts)])
    return weights


def joined(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """q, k and v in one tensor."""
    for name in [name for name in weights if ".q_proj." in name]:
        parts = [weights.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        weights[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat(parts)
    return weights


def converted(name: str, value: torch.Tensor, arch: str, config: Any) -> torch.Tensor:
    """What the converter does to a tensor."""
    heads = config.num_attention_heads
    if arch == "gpt2" and value.dim() == 2 and ("attn" in name or "ffn" in name):
        return value.t()
    if arch in PERMUTED and ".attn_q." in name:
        return permuted(value, heads)
    if arch in PERMUTED and ".attn_k." in name:
        return permuted(value, config.num_key_value_heads)
    if arch in HEADS_TOGETHER and ".attn_qkv." in name:
        return separated(value, heads, kv_heads(config) if arch == "falcon" else heads)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    return value.squeeze()


def kv_heads(config: Any) -> int:
    """Of Falcon."""
    return int(config.num_kv_heads) if config.new_decoder_architecture else 1


def permuted(value: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary halves -> interleaved pairs."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def separated(value: torch.Tensor, heads: int, groups: int) -> torch.Tensor:
    """[groups, q heads + k + v, dim] -> [q | k | v]"""
    parts = value.reshape(groups, heads // groups + 2, -1, *value.shape[1:])
    return torch.cat([part.reshape(-1, *value.shape[1:]) for part in (parts[:, :-2], parts[:, -2], parts[:, -1])])
