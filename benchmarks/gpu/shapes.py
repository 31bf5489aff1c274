"""Shapes of real models, as config.json says them, and toy ones for a dry run."""

from __future__ import annotations

from typing import Any

LLAMA_3_8B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 8192, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
QWEN3_0_6B: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 40960, "tie_word_embeddings": True,
    "hidden_act": "silu",
}  # fmt: skip
_TOY = {
    "vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 128,
}  # fmt: skip


def llama(is_toy: bool) -> dict[str, Any]:
    """Llama-3-8B."""
    return LLAMA_3_8B | _TOY if is_toy else LLAMA_3_8B


def qwen(is_toy: bool) -> dict[str, Any]:
    """Qwen3-0.6B."""
    return QWEN3_0_6B | _TOY if is_toy else QWEN3_0_6B
