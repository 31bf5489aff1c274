"""The grammar of bare words, and the rule that tells a model from a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import UsageError
from runner.words import Words, looks_like_model, parse_words, split_tail


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Words()),
        (["in=http", "m.gguf"], Words("http", None, "m.gguf", None)),
        (["m.gguf", "out=llamacpp", "hi", "in=text"], Words("text", "llamacpp", "m.gguf", "hi")),
        (["org/name:Q4_K_M"], Words(model="org/name:Q4_K_M")),
        (["hf://org/name"], Words(model="hf://org/name")),
        (["./show"], Words(model="./show")),
        (["demo"], Words(model="demo")),
        (["hi"], Words(prompt="hi")),
        (["What is 1/2 of x.gguf"], Words(prompt="What is 1/2 of x.gguf")),
        (["x=1+2?"], Words(prompt="x=1+2?")),
        (["y" * 5000], Words(prompt="y" * 5000)),
        (["out=pystr:a=b.py", "hi"], Words(target="pystr:a=b.py", prompt="hi")),
    ],
)
def test_words(words: list[str], expected: Words) -> None:
    assert parse_words(words, aliases=["demo"]) == expected


def test_a_word_that_exists_as_a_file_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not looks_like_model("weights")
    (tmp_path / "weights").touch()
    assert looks_like_model("weights")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in=http", "in=text"], "in= is given twice: in=http and in=text"),
        (["out="], "out= needs a value"),
        (["a.gguf", "b", "c"], "too many words"),
        (["what", "is this"], "'what' is not a model.*quotes"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_words(words, aliases=[])


def test_model_path_and_a_word() -> None:
    assert parse_words(["hi"], aliases=[], model_path="m.gguf") == Words(model="m.gguf", prompt="hi")
    assert parse_words(["m.gguf"], aliases=[], model_path="m.gguf") == Words(model="m.gguf")
    with pytest.raises(UsageError, match="two models"):
        parse_words(["n.gguf"], aliases=[], model_path="m.gguf")


def test_the_tail_is_what_follows_two_dashes() -> None:
    assert split_tail(["a", "--", "-x", "--"]) == (["a"], ("-x", "--"))
    assert split_tail(["a"]) == (["a"], ())
