"""What the child does where mistral.rs itself fails. Needs no mistral.rs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from model_cards.resolve import resolve
from runner.engines.base import EngineSpec
from runner.engines.mistralrs.engine import MistralrsEngine
from runner.engines.mistralrs.tokenizer_file import write_plain
from runner.engines.mistralrs.vocabulary import Vocabulary
from runner.errors import EngineFailed, LlmrunError, RequestError
from runner.types import SamplingParams, TokenRequest


class Panic(BaseException):
    """As pyo3's PanicException: not an Exception."""


class Reader:
    """Reads letters; knows token 0 as a control token."""

    special_ids = frozenset({0})

    def all_token_bytes(self) -> list[bytes]:
        return [b"<s>", b"a", b"b", b"ab"]

    def tokenize_text(self, text: str, add_special_tokens: bool, enable_thinking: bool | None) -> list[int]:
        return [3] if text == "ab" else [" ab".index(letter) for letter in text]

    def detokenize_text(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return "".join(["<s>", "a", "b", "ab"][token] for token in tokens)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (Panic("called `Option::unwrap()`"), EngineFailed),
        (RuntimeError("Already borrowed"), EngineFailed),
        (ValueError("Invalid grammar. x\n backtrace"), RequestError),
        (ValueError("input tensor is not contiguous"), EngineFailed),
    ],
    ids=repr,
)
async def test_whatever_it_raises_ends_the_stream_and_frees_the_slot(
    raised: BaseException, kind: type[LlmrunError], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = MistralrsEngine(EngineSpec(name="mistralrs", card=resolve("demo-hf")))
    reader = Reader()
    engine._vocabulary, engine._context_length = Vocabulary(reader, reader), 100
    engine._special_texts = {0: "<s>"}

    def fail(prompt: str, fields: dict[str, Any]) -> Any:
        raise raised

    monkeypatch.setattr(engine, "_open", fail)
    with pytest.raises(kind) as caught:
        async with asyncio.timeout(5), aclosing(engine.generate(TokenRequest(id="t", token_ids=[1]))) as stream:
            async for _ in stream:
                pass
    assert "backtrace" not in str(caught.value)
    await asyncio.sleep(0.05)
    assert await engine.stats() == {"num_running": 0.0, "num_waiting": 0.0}
    await engine.close()


def test_ids_that_no_text_gives_are_refused() -> None:
    vocabulary = Vocabulary(Reader(), Reader())
    assert vocabulary.prompt_text([3]) == "ab"
    with pytest.raises(RequestError, match="as text"):
        vocabulary.prompt_text([1, 2])


def test_of_equal_bytes_the_likeliest_is_taken() -> None:
    top = SimpleNamespace(token=2, logprob=-1.0, bytes="b")
    vocabulary = Vocabulary(Reader(), Reader())
    assert vocabulary.id_of(SimpleNamespace(token="b", bytes=b"b", logprob=-1.0, top_logprobs=[top])) == 2
    assert vocabulary.id_of(SimpleNamespace(token="a", bytes=b"a", logprob=-9.0, top_logprobs=[top])) == 1
    with pytest.raises(EngineFailed, match="no token"):
        vocabulary.id_of(SimpleNamespace(token="z", bytes=b"z", logprob=-9.0, top_logprobs=[top]))


def test_a_plain_tokenizer_keeps_ids_and_the_names_of_ends(tmp_path: Any) -> None:
    from pathlib import Path

    from tokenizers import Tokenizer

    card = resolve("demo-hf")
    assert card.tokenizer is not None
    source = Path(card.tokenizer.path)
    renamed = write_plain(source, tmp_path / "plain.json", {2}, {"<|endoftext|>"})
    assert renamed == {1: b"[[token 1]]"}
    old, new = Tokenizer.from_file(str(source)), Tokenizer.from_file(str(tmp_path / "plain.json"))
    assert new.encode("[[token 1]]user\nHi<|im_end|>").ids == old.encode("<|im_start|>user\nHi<|im_end|>").ids


def test_sampling_is_neutral_where_nothing_is_said() -> None:
    from runner.engines.mistralrs.sampling import request_fields

    fields = request_fields(TokenRequest(id="t", token_ids=[1], sampling=SamplingParams()), [], {0}, 4)
    assert (fields["top_k"], fields["top_p"], fields["min_p"], fields["repetition_penalty"]) == (4, 1.0, 0.0, 1.0)
    assert fields["ignore_eos"] is True and fields["logit_bias"] == {0: -1e6}
