"""Long texts take another way through the library; the ids are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_cards import library_encode
from model_cards.hf_tokenizer import load


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama2"])
def test_long_texts_get_the_same_ids(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load(shared_data / "tokenizers" / name / "tokenizer.json")
    text = (shared_data / "text" / "wikitext2_test.txt").read_text()[:200_000] + " 你好 😀<|endoftext|></s>"
    by_batch = tokenizer.encode(text)
    plain_by_batch = tokenizer.encode(text, parse_special=False)
    monkeypatch.setattr(library_encode, "_LONG_CHARS", len(text) + 1)
    assert tokenizer.encode(text) == by_batch
    assert tokenizer.encode(text, parse_special=False) == plain_by_batch
    assert plain_by_batch != by_batch
