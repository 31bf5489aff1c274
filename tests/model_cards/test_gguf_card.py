"""fields_from_gguf: the card's fields, with llama.cpp's view of special ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_cards.card import ModelCard
from model_cards.gguf import GgufFile
from model_cards.gguf_card import fields_from_gguf
from tests.model_cards import gguf_maker as make


def fields(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    data = make.gguf(make.spm_metadata(**changes), {"a": (8,)})
    with GgufFile.open(make.write(tmp_path / "m.gguf", data)) as gguf:
        return fields_from_gguf(gguf)


def test_fields_make_a_card(tmp_path: Path) -> None:
    card = ModelCard(name="m", source="m.gguf", **fields(tmp_path))
    assert (card.architecture, card.context_length, card.vocab_size) == ("llama", 128, len(make.SPM_TOKENS))
    assert (card.bos_token_id, card.add_bos, card.add_eos) == (1, True, False)
    assert card.chat_template == "{{ messages }}" and card.named_templates == {"tool_use": "{{ tools }}"}
    assert card.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert card.tokenizer is not None and card.tokenizer.kind == "gguf"
    assert card.details["quantization"] == "Q4_K_M" and card.details["parameters"] == 8 and card.details["layers"] == 1


def test_every_end_token_is_kept_the_eos_first(tmp_path: Path) -> None:
    end = make.SPM_TOKENS.index("<|im_end|>")
    assert fields(tmp_path)["eos_token_ids"] == (2, end)
    assert fields(tmp_path, **{"tokenizer__ggml__eos_token_id": end})["eos_token_ids"] == (end, 2)


def test_ids_outside_the_vocabulary_are_no_ids(tmp_path: Path) -> None:
    got = fields(tmp_path, **{"tokenizer__ggml__bos_token_id": 4_000_000_000, "tokenizer__ggml__eot_token_id": -1})
    assert got["bos_token_id"] == 1


def test_harmony_end_of_part_is_no_end(tmp_path: Path) -> None:
    tokens = [*make.SPM_TOKENS, "<|end|>", "<|return|>", "<|call|>"]
    types = [*make.SPM_TYPES, 3, 3, 3]
    scores = [0.0] * len(tokens)
    got = fields(
        tmp_path,
        **{"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types, "tokenizer__ggml__scores": scores},
    )
    assert tokens.index("<|end|>") not in got["eos_token_ids"]
    assert {tokens.index("<|return|>"), tokens.index("<|call|>")} <= set(got["eos_token_ids"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer__ggml__model": "gpt2", "tokenizer__ggml__pre": "never-heard-of"}, "'never-heard-of'"),
        ({"tokenizer__ggml__model": "no_vocab"}, "has no tokenizer"),
        ({"tokenizer__ggml__model": "hybriddna"}, "'hybriddna' is not supported"),
        ({"tokenizer__ggml__tokens": ["a", "b", "a"]}, "'a' is there twice"),
        ({"tokenizer__ggml__tokens": ["a" * 20_000]}, "token 0 has 20000 characters"),
        ({"tokenizer__ggml__token_type": [1, 1]}, "2 token types for"),
    ],
)
def test_a_file_without_a_usable_tokenizer_still_has_fields(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    got = fields(tmp_path, **change)
    assert got["tokenizer"] is None and message in got["details"]["tokenizer_error"]
    assert got["context_length"] == 128


def test_shared_models(shared_data: Path) -> None:
    with GgufFile.open(shared_data / "models" / "tinychat-3m.f16.gguf") as gguf:
        got = fields_from_gguf(gguf)
    assert (got["context_length"], got["vocab_size"], got["eos_token_ids"]) == (256, 14019, (14018,))
    assert got["chat_template"] and got["add_bos"] is False
    with GgufFile.open(shared_data / "gguf-vocab" / "ggml-vocab-phi-3.gguf") as gguf:
        assert fields_from_gguf(gguf)["eos_token_ids"] == (32000, 2, 32007)


def test_the_authors_sampling_defaults(tmp_path: Path) -> None:
    given = {"temp": 0.5, "top_k": 20, "penalty_repeat": 1.25, "top_p": float("nan"), "min_p": "much"}
    got = fields(tmp_path, **{f"general__sampling__{name}": value for name, value in given.items()})
    assert got["sampling"] == {"temperature": 0.5, "top_k": 20, "repetition_penalty": 1.25}
    assert fields(tmp_path)["sampling"] == {}
