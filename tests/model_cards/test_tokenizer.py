"""load_tokenizer and tokenizers out of tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_cards.card import ModelCard, TokenizerKind, TokenizerRef
from model_cards.errors import ModelFileError, ModelNotFound, TokenizerError
from model_cards.tokenizer import Tokenizer, load_tokenizer
from tests.model_cards import gguf_maker as make


def card(kind: TokenizerKind, path: Path) -> ModelCard:
    return ModelCard(name="m", source="m", bos_token_id=1, tokenizer=TokenizerRef(kind=kind, path=str(path)))


def hf(shared_data: Path, name: str) -> Tokenizer:
    return load_tokenizer(card("hf", shared_data / "tokenizers" / name / "tokenizer.json"))


@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen2", "gpt2", "bert"])
def test_goldens(shared_data: Path, name: str) -> None:
    golden = json.loads((shared_data / "tokenizers" / "golden_ids.json").read_text(encoding="utf-8"))
    tokenizer = hf(shared_data, name)
    for text, ids in zip(golden["texts"], golden["ids"][f"{name}_hf"], strict=True):
        assert tokenizer.encode(text) == ids
        if name in ("llama3", "gpt2"):
            assert tokenizer.decode(ids) == text


def test_post_processor_is_what_add_special_adds(shared_data: Path) -> None:
    assert hf(shared_data, "bert").encode("a", add_special=True) == [101, 1037, 102]
    llama2 = hf(shared_data, "llama2")
    assert llama2.encode("a", add_special=True) == [1, 263] and llama2.add_bos and not llama2.add_eos


def test_parse_special_can_be_switched_for_each_call(shared_data: Path) -> None:
    tokenizer = hf(shared_data, "gpt2")
    assert tokenizer.encode("<|endoftext|>") == [50256]
    assert 50256 not in tokenizer.encode("<|endoftext|>", parse_special=False)
    assert tokenizer.encode("<|endoftext|>") == [50256]


def test_pieces(shared_data: Path) -> None:
    gpt2, llama2 = hf(shared_data, "gpt2"), hf(shared_data, "llama2")
    assert (gpt2.token_text(262), gpt2.token_bytes(262)) == ("Ġthe", b" the")
    assert (llama2.token_text(278), llama2.token_bytes(278)) == ("\u2581the", b" the")
    assert llama2.token_bytes(13) == b"\n" and llama2.is_special(1) and llama2.special_ids >= {0, 1, 2}
    assert len(gpt2.all_token_bytes()) == gpt2.vocab_size == 50257


def test_json_form_is_read_back(shared_data: Path) -> None:
    from tokenizers import Tokenizer as Library

    tokenizer = hf(shared_data, "gpt2")
    assert Library.from_str(tokenizer.to_json()).encode("Hello world").ids == tokenizer.encode("Hello world")


def test_kinds_without_a_json_form_say_so(tmp_path: Path) -> None:
    metadata = make.spm_metadata(**{"tokenizer__ggml__model": "rwkv"})
    path = make.write(tmp_path / "m.gguf", make.gguf(metadata))
    with pytest.raises(TokenizerError, match="all_token_bytes"):
        load_tokenizer(card("gguf", path)).to_json()


def test_no_tokenizer_says_why() -> None:
    with pytest.raises(TokenizerError, match="no tokenizer file"):
        load_tokenizer(ModelCard(name="m", source="m"))
    details = {"tokenizer_error": "pre-tokenizer 'x' is not known"}
    with pytest.raises(TokenizerError, match="'x' is not known"):
        load_tokenizer(ModelCard(name="m", source="m", details=details))


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelNotFound):
        load_tokenizer(card("hf", path))
    for text in ("", "{}", '{"model": 1}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ModelFileError, match=r"not a tokenizer\.json"):
            load_tokenizer(card("hf", path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_tokenizer(card("hf", path))
