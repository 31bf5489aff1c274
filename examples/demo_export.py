"""Write the demo model's files: a GGUF (q8_0) and a Hugging Face folder (bfloat16) that hold exactly the same numbers.

Owns the file formats and `snap_weights`, which moves every weight to a number that both formats can hold. Knows
nothing of training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from demo_network import DemoNetwork, Shape
from safetensors.torch import save_file
from tokenizers import Tokenizer

NAME = "llmrun-demo"
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, IM_START, IM_END)
"""Ids 0, 1 and 2. Either end mark stops an answer."""
BLOCK = 32
"""Weights of one q8_0 block: 32 int8 numbers and one float16 scale."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- elif message['content'] -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _block_scales(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One power of two for each block of `weight` [rows, blocks, 32] such that int8 reaches its largest number."""
    largest = np.maximum(np.abs(weight).max(axis=-1, keepdims=True), 2.0**-17)
    return np.exp2(np.ceil(np.log2(largest / 127.0)))


def quantize(weight: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(int8 numbers, scales) of a float32 matrix [rows, columns], in blocks of 32 columns.

    The scales are powers of two: int8 times a power of two is exact in bfloat16, float16 and float32 alike, so every
    engine computes with the same weights whatever file it reads. It costs at most one bit against best scales.
    """
    blocks = weight.reshape(weight.shape[0], -1, BLOCK)
    scales = _block_scales(blocks)
    return np.clip(np.round(blocks / scales), -127, 127).astype(np.int8), scales


@torch.no_grad()
def snap_weights(network: DemoNetwork) -> None:
    """Move matrices to what q8_0 holds and norms to bfloat16. Mutates `network`; doing it twice changes nothing."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.copy_(parameter.bfloat16().float())
            continue
        numbers, scales = quantize(parameter.numpy())
        parameter.copy_(torch.from_numpy((numbers * scales).astype(np.float32).reshape(parameter.shape)))


def _to_q8_0(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows of q8_0 blocks as bytes (ggml-common.h, block_q8_0: float16 scale, then 32 int8)."""
    numbers, scales = quantize(weight)
    packed = np.concatenate([scales.astype("<f2").view(np.uint8), numbers.view(np.uint8)], axis=-1)
    return packed.reshape(weight.shape[0], -1)


def _interleave(weight: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """Rows of q or k from half-split to interleaved rotary order (convert_hf_to_gguf.py, LlamaModel.permute)."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor, such as `blk.0.attn_q.weight`."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def write_gguf(network: DemoNetwork, tokenizer: Tokenizer, path: Path) -> None:
    """One GGUF file with weights, tokenizer and chat template."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, network.shape)
    _add_tokenizer(writer, tokenizer)
    heads = {"q_proj": network.shape.num_heads, "k_proj": network.shape.num_kv_heads}
    for name, parameter in network.named_parameters():
        weight = parameter.detach().numpy()
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
            continue
        num_heads = heads.get(name.split(".")[-2])
        rows = weight if num_heads is None else _interleave(weight, num_heads)
        writer.add_tensor(gguf_name(name), _to_q8_0(rows), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_type("model")
    writer.add_name(NAME)
    writer.add_description("A tiny chat model for trying out and testing llmrun")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_sampling_temp(0.0)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.ffn_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if token in SPECIAL else kinds.NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_hf(network: DemoNetwork, tokenizer: Tokenizer, folder: Path) -> None:
    """A folder that transformers, vLLM and SGLang load."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().bfloat16() for name, parameter in network.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors makes files that only their owner may read.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    special = {"bos_token": END_OF_TEXT, "eos_token": IM_END, "pad_token": END_OF_TEXT}
    _write_json(folder / "config.json", _hf_config(network.shape))
    _write_json(folder / "generation_config.json", _GENERATION)
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(network.shape, special))


_GENERATION = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": False, "temperature": 0.0}


def _hf_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def _tokenizer_config(shape: Shape, special: dict[str, str]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        **special,
        "added_tokens_decoder": {str(i): {"content": token, **flags} for i, token in enumerate(SPECIAL)},
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
