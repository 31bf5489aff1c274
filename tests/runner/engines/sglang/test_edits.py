"""What our logit processor does to a row of logits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from runner.engines.guidance import Guide
from runner.engines.sglang.edits import Edits
from runner.errors import EngineFailed
from runner.types import GuidedDecoding, SamplingParams, TokenRequest


class Letters:
    """a to e, and an end token."""

    special_ids = frozenset({5})

    def all_token_bytes(self) -> list[bytes]:
        return [b"a", b"b", b"c", b"d", b"e", b""]

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return ["abcde".index(letter) for letter in text]


def edits(**fields: Any) -> Edits:
    sampling = SamplingParams(**{"temperature": 0.0, **fields.pop("sampling", {})})
    request = TokenRequest(id="r", token_ids=[], sampling=sampling, max_tokens=9, **fields)
    guide = Guide(Letters(), vocab_size=6, eos_token_ids=[5])
    return Edits(request, guide.matcher(sampling.guided) if sampling.guided is not None else None)


def allowed(one: Edits, prompt: list[int], output: list[int], row: list[float] | None = None) -> set[int]:
    values = np.array(row or [1.0] * 6, np.float32)
    one.apply(values, prompt, output)
    return set(np.flatnonzero(np.isfinite(values)).tolist())


def test_stop_ids_are_out_until_the_minimum_is_met() -> None:
    one = edits(min_tokens=2, stop_token_ids=(4, 5))
    assert allowed(one, [0], []) == allowed(one, [0], [0]) == {0, 1, 2, 3}
    assert allowed(one, [0], [0, 1]) == {0, 1, 2, 3, 4, 5}


def test_bad_words_are_out_also_across_prompt_and_answer() -> None:
    one = edits(sampling={"bad_words_ids": ((3,), (0, 1, 2))})
    assert allowed(one, [0, 1], []) == {0, 1, 4, 5}
    assert allowed(one, [0], [1]) == {0, 1, 4, 5}
    assert allowed(one, [1], [1]) == {0, 1, 2, 4, 5}
    assert allowed(one, [], []) == {0, 1, 2, 4, 5}


def test_a_grammar_is_followed_from_token_to_token() -> None:
    one = edits(sampling={"guided": GuidedDecoding(regex="ab[cd]")}, stop_token_ids=(5,))
    assert [allowed(one, [0], output) for output in ([], [0], [0, 1], [0, 1, 3])] == [{0}, {1}, {2, 3}, {5}]


def test_a_complete_text_ends_though_the_minimum_is_not_met() -> None:
    one = edits(sampling={"guided": GuidedDecoding(choice=("a",))}, stop_token_ids=(5,), min_tokens=4)
    assert allowed(one, [], []) == {0}
    assert allowed(one, [], [0]) == {5}


def test_a_seed_and_a_place_give_one_token_whatever_was_drawn_before() -> None:
    sampling = {"temperature": 1.0, "seed": 7}
    first, again = edits(sampling=sampling), edits(sampling=sampling)
    places = [allowed(first, [], [0] * at) for at in range(40)]
    assert all(len(place) == 1 for place in places)
    assert [allowed(again, [], [0] * at) for at in reversed(range(40))] == places[::-1]
    assert places != [allowed(edits(sampling={"temperature": 1.0, "seed": 8}), [], [0] * at) for at in range(40)]


def test_draws_follow_the_logits_and_the_truncation() -> None:
    row = [float(np.log(share)) for share in (0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125)]
    drawn = Counter[int]()
    for seed in range(2000):
        one = edits(sampling={"temperature": 1.0, "seed": seed, "top_k": 3})
        drawn.update(allowed(one, [], [], row))
    assert set(drawn) == {0, 1, 2}
    assert [drawn[token] / 2000 for token in range(3)] == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=0.04)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(EngineFailed, match="no usable logits"):
        allowed(edits(sampling={"temperature": 1.0, "seed": 1}), [], [], [float("nan")] * 6)
