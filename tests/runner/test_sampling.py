from __future__ import annotations

import math
from typing import Any

import pytest

from runner.errors import RequestError
from runner.sampling import clean_defaults, num_choices, resolve_sampling
from runner.types import GuidedDecoding, SamplingOptions, SamplingParams

VOCAB = 100


def resolve(defaults: dict[str, Any] | None = None, **asked: Any) -> SamplingParams:
    return resolve_sampling(SamplingOptions(**asked), defaults or {}, VOCAB, lambda text: [ord(c) for c in text])


def test_the_request_beats_the_card_beats_neutral() -> None:
    resolved = resolve({"temperature": 0.6, "top_p": 0.9}, temperature=0.0)
    assert (resolved.temperature, resolved.top_p, resolved.min_p) == (0.0, 0.9, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e30),
        ("temperature", 10**400),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("typical_p", 0.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("length_penalty", math.nan),
        ("top_k", -2),
        ("top_k", 1.5),
        pytest.param("top_k", 1 << 20_000, id="top_k-huge"),
        ("seed", -2),
        ("seed", 2**64),
        ("logprobs", -1),
        ("logprobs", 101),
        ("beam_width", 0),
        ("logit_bias", {VOCAB: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: 101.0}),
        ("bad_words", (" ",)),
        ("bad_words", ("a",) * 2000),
        ("guided", GuidedDecoding()),
        ("guided", GuidedDecoding(regex="a", json_object=True)),
        ("guided", GuidedDecoding(choice=())),
        ("guided", GuidedDecoding(choice=("a", ""))),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        resolve(**{field: value})
    assert caught.value.field == field
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("n", [0, -1, 129, 10**10, 1.5])
def test_n_out_of_range(n: Any) -> None:
    with pytest.raises(RequestError, match="n "):
        num_choices(SamplingOptions(n=n))


def test_ends_of_ranges_are_allowed() -> None:
    resolve(temperature=0, top_p=1, min_p=1, presence_penalty=-2, frequency_penalty=2, seed=0, logprobs=0, top_k=0)
    assert num_choices(SamplingOptions(n=128)) == 128


@pytest.mark.parametrize("off", [-1, 0, VOCAB, VOCAB + 1])
def test_top_k_spellings_of_off(off: int) -> None:
    assert resolve(top_k=off).top_k == 0


def test_seed_minus_one_is_random() -> None:
    assert resolve(seed=-1).seed is None


def test_bad_words_are_banned_at_a_start_and_after_a_space() -> None:
    tokens = {"bad": [7], " bad": [8], "worse": [9], " worse": [32, 9]}
    resolved = resolve_sampling(SamplingOptions(bad_words=("bad", " worse")), {}, VOCAB, tokens.__getitem__)
    assert resolved.bad_words_ids == ((7,), (8,), (9,))


def test_defaults_of_a_card_that_make_no_sense_are_left_out_and_named() -> None:
    usable, complaints = clean_defaults({"temperature": 0.6, "top_k": -1, "top_p": 7, "max_length": 20, "min_p": None})
    assert usable == {"temperature": 0.6, "top_k": 0}
    assert [text.split()[0] for text in complaints] == ["top_p", "max_length"]
