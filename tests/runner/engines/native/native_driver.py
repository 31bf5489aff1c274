"""Drives a NativeEngine in this thread (see step_driver.py), and makes toy models for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_cards.resolve import resolve
from runner.engines.native.engine import NativeEngine
from tests.runner.engines.step_driver import GREEDY, Answer, StepDriver

__all__ = ["GREEDY", "Answer", "Driver", "make_toy_llama"]


class Driver(StepDriver):
    """Of a Hugging Face folder, a GGUF file or a preset; float32 and one thread unless told."""

    engine: NativeEngine

    def __init__(self, source: Path | str, **options: Any) -> None:
        fixed = {"dtype": "float32", "threads": 1, **options}
        super().__init__(NativeEngine(), "native", resolve(str(source)), **fixed)


def make_toy_llama(folder: Path, *, seed: int = 0, vocab: int = 512, context: int = 512, **changes: Any) -> Path:
    """A seeded llama of 2 layers as a Hugging Face folder without a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.2, **changes,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
