"""Tokenizers out of GGUF files: llama.cpp's ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_cards.errors import TokenizerError
from model_cards.gguf_tokenizer import load
from model_cards.hf_tokenizer import load as load_hf
from model_cards.pretokenizers import PRE_TOKENIZERS
from model_cards.tokenizer import Tokenizer
from tests.model_cards import gguf_maker as make
from tests.model_cards.nasty_texts import nasty_texts

VOCABULARIES = ["bert-bge", "deepseek-coder", "gpt-2", "llama-spm", "phi-3", "starcoder"]


def tiny(tmp_path: Path, **changes: Any) -> Tokenizer:
    return load(make.write(tmp_path / "m.gguf", make.gguf(make.spm_metadata(**changes))))


def bpe(tmp_path: Path, pre: str, merges: list[str], **changes: Any) -> Tokenizer:
    from model_cards.token_pieces import CHAR_OF_BYTE

    alphabet = [CHAR_OF_BYTE[byte] for byte in range(256)]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), "<|eot_id|>", "<tool>"]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }
    return load(make.write(tmp_path / "m.gguf", make.gguf(metadata | changes)))


def cases(inp: Path) -> list[tuple[str, list[int]]]:
    texts = inp.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = inp.with_suffix(".out").read_text(encoding="utf-8").split("\n")
    return [(text, [int(number) for number in line.split()]) for text, line in zip(texts, lines, strict=False)]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_llamacpp_cases(shared_data: Path, name: str) -> None:
    path = shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf"
    tokenizer = load(path)
    checked = cases(path.with_name(path.name + ".inp"))
    assert len(checked) > 40
    for text, ids in checked:
        assert tokenizer.encode(text, parse_special=False) == ids, text


@pytest.mark.parametrize(("name", "folder"), [("llama-bpe", "llama3"), ("qwen2", "qwen2")])
def test_llamacpp_cases_without_a_vocabulary_file(shared_data: Path, name: str, folder: str) -> None:
    tokenizer = load_hf(shared_data / "tokenizers" / folder / "tokenizer.json")
    for text, ids in cases(shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf.inp"):
        assert tokenizer.encode(text, parse_special=False) == ids, text


def test_special_tokens_are_read_only_where_asked(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    end, tool = make.SPM_TOKENS.index("<|im_end|>"), make.SPM_TOKENS.index("<tool>")
    assert tokenizer.encode("a<|im_end|>") == [make.SPM_TOKENS.index("\u2581a"), end]
    assert end not in tokenizer.encode("a<|im_end|>", parse_special=False)
    # User-defined tokens are text that is one token, always.
    assert tokenizer.encode("<tool>", parse_special=False) == [tool]
    assert tokenizer.is_special(end) and not tokenizer.is_special(tool)


def test_add_special_follows_the_file(tmp_path: Path) -> None:
    a = make.SPM_TOKENS.index("\u2581a")
    assert tiny(tmp_path).encode("a", add_special=True) == [1, a]
    both = tiny(tmp_path, **{"tokenizer__ggml__add_eos_token": True, "tokenizer__ggml__add_bos_token": False})
    assert both.encode("a", add_special=True) == [a, 2]
    assert (both.add_bos, both.add_eos) == (False, True)


def test_space_prefix_comes_back_after_a_special_token(tmp_path: Path) -> None:
    a, marked = make.SPM_TOKENS.index("a"), make.SPM_TOKENS.index("\u2581a")
    assert tiny(tmp_path).encode("a<s>a") == [marked, 1, marked]
    assert tiny(tmp_path, **{"tokenizer__ggml__add_space_prefix": False}).encode("a<s>a") == [a, 1, a]


def test_unknown_characters_become_bytes(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    assert tokenizer.encode("é") == [make.SPM_TOKENS.index("\u2581"), 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.token_bytes(3 + 0xC3) == b"\xc3" and tokenizer.decode(tokenizer.encode("aéb")) == "aéb"


def test_lone_surrogates_do_no_harm(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("\ud83d\ude42") == tokenizer.encode("🙂")


def test_phi3_special_tokens_swallow_whitespace(tmp_path: Path) -> None:
    b = make.SPM_TOKENS.index("\u2581ab")
    end = make.SPM_TOKENS.index("<|im_end|>")
    tokenizer = tiny(tmp_path, general__name="Phi-3 mini")
    assert tokenizer.encode("<|im_end|> \n ab") == [end, b]


def test_ids_outside_the_vocabulary_are_nothing(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    assert tokenizer.token_bytes(-1) == b"" and tokenizer.token_text(10**9) == ""
    assert tokenizer.decode([10**9, make.SPM_TOKENS.index("a")]) == "a"


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_compiles_and_loses_nothing(tmp_path: Path, pre: str) -> None:
    if PRE_TOKENIZERS[pre].is_raw:
        pytest.skip("raw vocabularies have no byte alphabet")
    tokenizer = bpe(tmp_path, pre, ["Ġ t", "h e", "Ġt he"])
    for text in nasty_texts(40, seed=1):
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


def test_pre_tokenizers_differ_where_they_should(tmp_path: Path) -> None:
    merges = ["1 2", "12 3", "123 4"]
    lengths = {pre: len(bpe(tmp_path, pre, merges).encode("1234")) for pre in ("llama-bpe", "qwen2", "gpt-2")}
    assert lengths == {"llama-bpe": 2, "qwen2": 4, "gpt-2": 1}


def test_ignore_merges_takes_whole_words(tmp_path: Path) -> None:
    # "abc" can only be made of "bc", which "ab" wins over: by merging it is two tokens.
    merges = ["a b", "b c", "a bc"]
    assert len(bpe(tmp_path, "llama-bpe", merges).encode("abc")) == 1
    assert len(bpe(tmp_path, "qwen2", merges).encode("abc")) == 2


def test_missing_pieces_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"pre-tokenizer 'x-new' .* is not known"):
        bpe(tmp_path, "x-new", ["a b"])
    with pytest.raises(TokenizerError, match="has no merges"):
        tiny(tmp_path, **{"tokenizer__ggml__model": "gpt2"})


def test_json_form_gives_the_same_ids(shared_data: Path) -> None:
    from tokenizers import Tokenizer as Library

    for name in ("gpt-2", "llama-spm"):
        tokenizer = load(shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf")
        library = Library.from_str(tokenizer.to_json())
        for text in ("Hello world", " 12 naïve 🙂", "a\n\nb"):
            assert library.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
            assert library.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert json.loads(tokenizer.to_json())["added_tokens"]


def test_importing_the_module_loads_no_library() -> None:
    modules = "model_cards.tokenizer, model_cards.gguf_card, model_cards.detokenizer"
    code = f"import sys, {modules}; print('tokenizers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.mark.llamacpp
@pytest.mark.parametrize("name", VOCABULARIES)
def test_same_ids_as_llamacpp(shared_data: Path, llamacpp_library: Path, name: str) -> None:
    """The library itself, in a process of its own, on texts drawn at random; every id, piece and end token."""
    path = shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf"
    texts = nasty_texts(300, seed=2)
    environment = os.environ | {"LLMRUN_LLAMACPP_LIB": str(llamacpp_library)}
    script = Path(__file__).with_name("llamacpp_vocab.py")
    done = subprocess.run(
        [sys.executable, str(script), str(llamacpp_library), str(path)],
        input=json.dumps(texts), capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    tokenizer = load(path)
    for text, plain, parsed in zip(texts, theirs["plain"], theirs["parsed"], strict=True):
        assert tokenizer.encode(text, parse_special=False) == plain, text
        assert tokenizer.encode(text) == parsed, text
    assert sorted(tokenizer.eos_token_ids) == theirs["ends"]
    pieces = [bytes.fromhex(piece) for piece in theirs["pieces"]]
    assert [tokenizer.token_bytes(index) for index in range(len(pieces))] == pieces
