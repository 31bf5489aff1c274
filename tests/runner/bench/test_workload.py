"""Loads: exact lengths, shared prefixes, seeds, files with bad lines."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from runner.bench.workload import Prompts, Shape, arrivals, read_dataset, read_trace
from runner.errors import UsageError


def _letters(text: str) -> int:
    """A stand-in tokenizer: one token a letter."""
    return len(text)


def test_lengths_are_words_without_a_tokenizer_and_tokens_with_one() -> None:
    shape = Shape(input_len=40, output_len=5)
    assert len(Prompts(0).make(shape).prompt.split()) == 40
    exact = Prompts(0, _letters).make(shape)
    assert 30 < len(exact.prompt) <= 40 and exact.max_tokens == 5


def test_prompts_share_the_prefix_and_nothing_else() -> None:
    prompts = Prompts(3)
    made = [prompts.make(Shape(input_len=30, prefix_len=20)).prompt.split() for _ in range(5)]
    assert len({tuple(words[:20]) for words in made}) == 1
    assert len({tuple(words[20:]) for words in made}) == 5


def test_the_same_seed_makes_the_same_load() -> None:
    assert [Prompts(1).make(Shape()) for _ in range(3)] == [Prompts(1).make(Shape()) for _ in range(3)]
    assert Prompts(1).make(Shape()) != Prompts(2).make(Shape())


def test_a_prefix_longer_than_the_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="--prefix-len 9"):
        Prompts(0).make(Shape(input_len=8, prefix_len=9))


def test_constant_arrivals_are_even_and_poisson_arrivals_have_the_rate() -> None:
    assert list(itertools.islice(arrivals(4.0, is_poisson=False, seed=0), 3)) == [0.0, 0.25, 0.5]
    poisson = list(itertools.islice(arrivals(10.0, is_poisson=True, seed=0), 2001))
    assert poisson == sorted(poisson) and 180 < poisson[-1] < 220


def test_dataset_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"messages": [{"role": "user", "content": "b"}], "max_tokens": 3}\n')
    first, second = read_dataset(file, 9)
    assert (first.prompt, first.max_tokens) == ("a", 9)
    assert (second.messages, second.max_tokens) == ([{"role": "user", "content": "b"}], 3)
    file.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    with pytest.raises(UsageError, match="line 2"):
        read_dataset(file, 9)
    with pytest.raises(UsageError, match="cannot read"):
        read_dataset(tmp_path / "none.jsonl", 9)


def test_traces_of_both_kinds(tmp_path: Path) -> None:
    mooncake, azure = tmp_path / "m.jsonl", tmp_path / "a.csv"
    mooncake.write_text(
        '{"timestamp": 1000, "input_length": 3, "output_length": 5}\n'
        '{"timestamp": 3000, "input_length": 4, "output_length": 6}\n'
    )
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,3,5\n2023-11-16 18:15:48.6805900,4,6\n"
    )
    for file in (mooncake, azure):
        requests = read_trace(file, Prompts(0), speed=2.0, limit=None)
        assert [request.arrival_s for request in requests] == [0.0, 1.0]
        assert [(len(request.prompt.split()), request.max_tokens) for request in requests] == [(3, 5), (4, 6)]
    assert len(read_trace(azure, Prompts(0), speed=1.0, limit=1)) == 1
    mooncake.write_text('{"timestamp": 1}\n')
    with pytest.raises(UsageError, match="line 1"):
        read_trace(mooncake, Prompts(0), speed=1.0, limit=None)
