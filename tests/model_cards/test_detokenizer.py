"""Detokenizer: any chunking gives the text of the whole, and never half a character."""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_cards import gguf_tokenizer, hf_tokenizer
from model_cards.detokenizer import Detokenizer
from model_cards.tokenizer import Tokenizer
from tests.model_cards import gguf_maker as make
from tests.model_cards.nasty_texts import nasty_texts
from tests.runner.fakes import write_tokenizer


@pytest.fixture
def tiny(tmp_path: Path) -> Tokenizer:
    return gguf_tokenizer.load(make.write(tmp_path / "m.gguf", make.gguf(make.spm_metadata())))


def byte(value: int) -> int:
    return 3 + value


def token(text: str) -> int:
    return make.SPM_TOKENS.index(text)


def in_chunks(detokenizer: Detokenizer, ids: Sequence[int], rng: random.Random) -> list[str]:
    parts, begin = [], 0
    while begin < len(ids):
        size = rng.randint(1, 4)
        chunk = ids[begin : begin + size]
        parts.append(detokenizer.push_one(chunk[0]) if len(chunk) == 1 else detokenizer.push(chunk))
        begin += size
    return [*parts, detokenizer.flush()]


def test_half_a_character_is_held_back(tiny: Tokenizer) -> None:
    stream = Detokenizer(tiny, prompt_ids=[token("a")])
    got = [stream.push([byte(value)]) for value in "🙂!".encode()]
    assert got == ["", "", "", "🙂", "!"]
    assert stream.flush() == ""


def test_an_unfinished_character_is_replaced_at_the_end(tiny: Tokenizer) -> None:
    stream = Detokenizer(tiny)
    assert stream.push([byte(0xE2), byte(0x82)]) == ""
    assert stream.flush() == "\ufffd"


def test_bytes_that_are_no_character_are_replaced_at_once(tiny: Tokenizer) -> None:
    stream = Detokenizer(tiny)
    assert stream.push([byte(0xE2), token("a")]) == "\ufffda"
    assert stream.push([byte(0xFF)]) == "\ufffd"


def test_first_space_is_the_vocabularys_only_at_the_beginning_of_a_text(tiny: Tokenizer) -> None:
    ids = [token("\u2581ab"), token("\u2581a")]
    assert Detokenizer(tiny).push(ids) == "ab a"
    assert Detokenizer(tiny, prompt_ids=[1]).push(ids) == " ab a"
    assert Detokenizer(tiny, prompt_ids=[1, token("\u2581a")]).push(ids) == " ab a"
    # The space may come alone, before the word.
    stream = Detokenizer(tiny)
    assert [stream.push([token("\u2581")]), stream.push([token("a")])] == ["", "a"]


def test_special_tokens_are_left_out_or_shown(tiny: Tokenizer) -> None:
    ids = [token("\u2581a"), token("<|im_end|>"), token("<tool>")]
    assert Detokenizer(tiny).push(ids) == "a<tool>"
    assert Detokenizer(tiny, skip_special=False).push(ids) == "a<|im_end|><tool>"


def test_a_character_that_the_prompt_began_is_finished(tiny: Tokenizer) -> None:
    stream = Detokenizer(tiny, prompt_ids=[token("a"), byte(0xF0), byte(0x9F), byte(0x99)])
    assert stream.push([byte(0x82)]) == "🙂"
    done = Detokenizer(tiny, prompt_ids=[token("a"), *map(byte, "🙂".encode())])
    assert done.push([token("b")]) == "b"


def test_ids_outside_the_vocabulary_add_nothing(tiny: Tokenizer) -> None:
    assert Detokenizer(tiny).push([10**6, token("a")]) == "a"


@pytest.mark.parametrize("skip_special", [True, False])
def test_random_ids_in_any_chunks(tiny: Tokenizer, skip_special: bool) -> None:
    rng = random.Random(3)
    for _ in range(400):
        ids = [rng.randrange(tiny.vocab_size) for _ in range(rng.randint(1, 30))]
        parts = in_chunks(Detokenizer(tiny, skip_special=skip_special), ids, rng)
        assert "".join(parts) == tiny.decode(ids, skip_special=skip_special)


@pytest.mark.parametrize("skip_special", [True, False])
def test_random_ids_after_a_prompt(tiny: Tokenizer, skip_special: bool) -> None:
    rng = random.Random(4)
    for _ in range(400):
        prompt = [rng.randrange(tiny.vocab_size) for _ in range(rng.randint(0, 6))]
        ids = [rng.randrange(tiny.vocab_size) for _ in range(rng.randint(1, 20))]
        before = tiny.decode(prompt, skip_special=skip_special)
        if before.endswith("\ufffd") or (prompt and not before):
            continue
        parts = in_chunks(Detokenizer(tiny, prompt_ids=prompt, skip_special=skip_special), ids, rng)
        assert before + "".join(parts) == tiny.decode([*prompt, *ids], skip_special=skip_special)


_LEADS = [0x61, 0x80, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0xF5, 0xFF]
"""Bytes at the edges of what UTF-8 allows."""
_BYTES = st.one_of(
    st.lists(st.sampled_from(_LEADS), max_size=9).map(bytes),
    st.text(max_size=8).map(str.encode),
    st.text(alphabet="a\u00e9\u20ac🙂", max_size=6).map(str.encode),
)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("toy") / "tokenizer.json"
    write_tokenizer(path)
    return hf_tokenizer.load(path)


@settings(max_examples=400)
@given(data=_BYTES, cut=st.integers(0, 40), seed=st.integers(0, 9))
def test_a_prompt_cut_anywhere_and_its_answer_are_one_text(
    byte_level: Tokenizer, data: bytes, cut: int, seed: int
) -> None:
    """What the prompt's bytes make certain is the prompt's, the rest is the answer's: nothing twice, nothing lost."""
    ids_of = {byte_level.token_bytes(index): index for index in range(256)}
    ids = [ids_of[data[at : at + 1]] for at in range(len(data))]
    prompt = codecs.utf_8_decode(data[:cut], "replace", False)[0] if cut else ""
    parts = in_chunks(Detokenizer(byte_level, prompt_ids=ids[:cut]), ids[cut:], random.Random(seed))
    assert prompt + "".join(parts) == data.decode("utf-8", "replace")


def test_a_tokenizer_without_pieces_finishes_the_prompts_character_too() -> None:
    def whole(ids: Sequence[int], skip_special: bool) -> str:
        return bytes(ids).decode("utf-8", "replace")

    tokenizer = Tokenizer(encoder=None, decoder=None, vocab_size=256, special_ids=(), whole_decode=whole)  # type: ignore[arg-type]
    data = "ab🙂c".encode()
    stream = Detokenizer(tokenizer, prompt_ids=list(data[:4]))
    assert "".join([*(stream.push_one(byte) for byte in data[4:]), stream.flush()]) == "🙂c"


@pytest.mark.parametrize("name", ["gpt2", "llama2", "llama3", "qwen2", "bert"])
def test_texts_of_shared_tokenizers_in_any_chunks(shared_data: Path, name: str) -> None:
    tokenizer = hf_tokenizer.load(shared_data / "tokenizers" / name / "tokenizer.json")
    assert (tokenizer.whole_decode is None) == (name != "bert")
    rng = random.Random(5)
    for text in nasty_texts(120, seed=6):
        ids = tokenizer.encode(text, parse_special=False)
        assert "".join(in_chunks(Detokenizer(tokenizer), ids, rng)) == tokenizer.decode(ids, skip_special=True)


def test_goldens_of_shared_models(shared_data: Path) -> None:
    for model in ("stories260k", "stories3m", "tinychat-3m"):
        golden = json.loads((shared_data / "models" / f"{model}.golden.json").read_text(encoding="utf-8"))
        path = next((shared_data / "models").glob(f"{model}.*.gguf"))
        tokenizer = gguf_tokenizer.load(path)
        for case in golden["prompts"]:
            stream = Detokenizer(tokenizer, prompt_ids=case["prompt_ids"])
            text = "".join(stream.push_one(index) for index in case["greedy_ids"]) + stream.flush()
            assert text == case["greedy_text"]
