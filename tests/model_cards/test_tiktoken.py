"""Tokenizers out of tiktoken ranks and tekken.json."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from model_cards import tiktoken
from model_cards.errors import ModelFileError, ModelNotFound, TokenizerError
from model_cards.hf_tokenizer import load as load_hf
from model_cards.token_pieces import alphabet_bytes
from tests.model_cards.nasty_texts import nasty_texts


def write_ranks(path: Path, tokens: list[bytes]) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    return path


def tekken(**changes: Any) -> str:
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b" ab", b"beyond the vocabulary"]
    entries = [{"rank": n, "token_bytes": base64.b64encode(t).decode()} for n, t in enumerate(tokens)]
    config = {"pattern": r"[^\s]+|\s+", "default_vocab_size": 268, "default_num_special_tokens": 10}
    return json.dumps({"config": config, "vocab": entries} | changes)


def test_ranks_give_the_goldens(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "tokenizers" / "qwen2" / "tokenizer.json"
    vocab = json.loads(source.read_text(encoding="utf-8"))["model"]["vocab"]
    path = write_ranks(tmp_path / "qwen.tiktoken", [alphabet_bytes(text) for text in sorted(vocab, key=vocab.get)])
    tokenizer = tiktoken.load_tiktoken(path)
    golden = json.loads((shared_data / "tokenizers" / "golden_ids.json").read_text(encoding="utf-8"))
    for text, ids in zip(golden["texts"], golden["ids"]["qwen2_hf"], strict=True):
        assert tokenizer.encode(text) == ids
    theirs = load_hf(source)
    for text in nasty_texts(100, seed=9):
        assert tokenizer.encode(text, parse_special=False) == theirs.encode(text, parse_special=False)


def test_a_vocabulary_of_no_known_family_is_refused(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "x.tiktoken", [bytes([byte]) for byte in range(256)])
    with pytest.raises(TokenizerError, match=r"256 ranks, .* known are r50k_base"):
        tiktoken.load_tiktoken(path)


def test_tekken_puts_special_tokens_first(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(tekken())
    tokenizer = tiktoken.load_tekken(path)
    assert tokenizer.vocab_size == 268
    assert tokenizer.encode("ab", add_special=True) == [1, 10 + 256]
    assert tokenizer.encode("[INST]ab[/INST]") == [3, 266, 4]
    assert tokenizer.encode("[INST]", parse_special=False) != [3]
    assert tokenizer.decode([3, 266, 10 + 0xC3, 10 + 0xA9]) == "[INST]abé"


def test_tekken_names_its_own_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(tekken(special_tokens=[{"rank": 2, "token_str": "<end>", "is_control": True}]))
    assert tiktoken.load_tekken(path).encode("<end>") == [2]


@pytest.mark.parametrize("text", ["not base64 at all", "YQ== one", "YQ==", "!!!! 1", "YQ== 99999999999", ""])
def test_bad_ranks(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_text(text)
    with pytest.raises(ModelFileError):
        tiktoken.load_tiktoken(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": {}}', '{"config": 1, "vocab": 2}'])
def test_bad_tekken(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(text)
    with pytest.raises(ModelFileError):
        tiktoken.load_tekken(path)
    with pytest.raises(ModelNotFound):
        tiktoken.load_tekken(tmp_path / "none.json")
