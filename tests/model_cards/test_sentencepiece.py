"""Tokenizers out of tokenizer.model files, checked against goldens of the sentencepiece library."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from model_cards.card import ModelCard
from model_cards.errors import ModelFileError, ModelNotFound, TokenizerError
from model_cards.hf_tokenizer import load as load_hf
from model_cards.sentencepiece import load
from tests.model_cards.nasty_texts import nasty_texts


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, item: int | bytes | float) -> bytes:
    if isinstance(item, int):
        return varint(number << 3) + varint(item)
    if isinstance(item, float):
        return varint(number << 3 | 5) + struct.pack("<f", item)
    return varint(number << 3 | 2) + varint(len(item)) + item


def model(pieces: list[tuple[str, float, int]], model_type: int = 2, **normalizer: int) -> bytes:
    data = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in pieces
    )
    numbers = {"add_dummy_prefix": 3, "remove_extra_whitespaces": 4}
    settings = b"".join(field(numbers[name], value) for name, value in normalizer.items())
    return data + field(2, field(3, model_type)) + field(3, settings)


PIECES = [
    ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("\u2581", -1.0, 1), ("a", -2.0, 1), ("b", -3.0, 1),
    ("\u2581a", -4.0, 1), ("ab", -5.0, 1), ("<x>", 0.0, 4),
]  # fmt: skip


def test_goldens(shared_data: Path) -> None:
    golden = json.loads((shared_data / "tokenizers" / "golden_ids.json").read_text(encoding="utf-8"))
    tokenizer = load(shared_data / "tokenizers" / "llama2" / "tokenizer.model")
    for text, plain, parsed in zip(
        golden["texts"], golden["ids"]["llama2_sentencepiece"], golden["ids"]["llama2_hf"], strict=True
    ):
        assert tokenizer.encode(text, parse_special=False) == plain
        assert tokenizer.encode(text) == parsed


@pytest.mark.parametrize("folder", ["tokenizers/llama2", "models/stories260k-hf", "models/stories3m-hf"])
def test_same_ids_as_the_tokenizer_json_beside_it(shared_data: Path, folder: str) -> None:
    ours = load(shared_data / folder / "tokenizer.model")
    theirs = load_hf(shared_data / folder / "tokenizer.json")
    for text in nasty_texts(200, seed=8):
        assert ours.encode(text, parse_special=False) == theirs.encode(text, parse_special=False), text
        assert ours.decode(ours.encode(text, parse_special=False)) == theirs.decode(
            theirs.encode(text, parse_special=False)
        )


def test_bpe_settings(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model(PIECES, add_dummy_prefix=1, remove_extra_whitespaces=0))
    assert load(path).encode("ab<x>a") == [6, 5, 8, 4]
    assert load(path).encode(" a", add_special=True) == [1, 3, 6]
    path.write_bytes(model(PIECES, add_dummy_prefix=0, remove_extra_whitespaces=1))
    assert load(path).encode("  a  a ") == [4, 6]
    # Control tokens are never made of text.
    assert 1 not in load(path).encode("<s>", parse_special=False)


def test_unigram_takes_the_likeliest_cut(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model(PIECES, model_type=1, add_dummy_prefix=1, remove_extra_whitespaces=1))
    # "▁" "ab" is -6, "▁a" "b" is -7; "▁" "a" is -3, "▁a" is -4.
    assert load(path).encode("ab") == [3, 7]
    assert load(path).encode("a é") == [3, 4, 3, 0]


def test_card_says_what_surrounds_a_text(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model(PIECES))
    card = ModelCard(name="x", source="x", bos_token_id=1, eos_token_ids=(2, 8), add_bos=False, add_eos=True)
    tokenizer = load(path, card)
    assert tokenizer.encode("a", add_special=True) == [6, 2] and tokenizer.eos_token_ids == (2, 8)


def test_tokens_added_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model(PIECES))
    added = {"11": {"content": "<|user|>", "special": True}, "9": {"content": "<tool>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = load(path)
    assert tokenizer.vocab_size == 12 and tokenizer.encode("<|user|><tool>") == [11, 9]
    assert tokenizer.is_special(11) and not tokenizer.is_special(9)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(ModelNotFound):
        load(path)
    whole = model(PIECES)
    for data in (b"", b"\xff" * 40, whole[:31], b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        path.write_bytes(data)
        with pytest.raises(ModelFileError):
            load(path)
    path.write_bytes(model(PIECES, model_type=3))
    with pytest.raises(TokenizerError, match="type 3 is not supported"):
        load(path)
