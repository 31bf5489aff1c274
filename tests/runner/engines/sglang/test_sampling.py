"""A TokenRequest as SGLang's sampling parameters; what would harm its scheduler is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runner.engines.sglang.sampling import REQUEST_KEY, Limits, check_request, is_steered, sampling_map
from runner.errors import RequestError
from runner.types import GuidedDecoding, SamplingParams, TokenRequest

EOS = frozenset({2})
LIMITS = Limits(vocab_size=100, context_length=50)


def request(**fields: Any) -> TokenRequest:
    fields = {"token_ids": [5, 6], "max_tokens": 8, **fields}
    sampling = SamplingParams(**fields.pop("sampling", {}))
    return TokenRequest(id="r", sampling=sampling, **fields)


def test_greedy() -> None:
    assert sampling_map(request(sampling={"temperature": 0.0}), EOS) == {
        "max_new_tokens": 8,
        "ignore_eos": True,
        "temperature": 0.0,
    }


def test_sglang_stops_by_itself_only_where_all_its_end_tokens_are_asked_for() -> None:
    """Its `ignore_eos` means all stop ids, and without it the model's own end tokens count."""
    assert sampling_map(request(stop_token_ids=(2, 7)), EOS)["stop_token_ids"] == [2, 7]
    assert sampling_map(request(stop_token_ids=(2, 7)), EOS)["ignore_eos"] is False
    other = sampling_map(request(stop_token_ids=(7,)), EOS)
    assert other["ignore_eos"] is True and "stop_token_ids" not in other


def test_every_field_that_sglang_knows() -> None:
    sampling = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {7: -1.5},
    }
    made = sampling_map(request(sampling=sampling), EOS)
    assert {**sampling, "logit_bias": {"7": -1.5}}.items() <= made.items()
    assert "custom_params" not in made


def test_off_has_sglangs_own_spelling() -> None:
    assert sampling_map(request(), EOS)["top_k"] == -1
    assert sampling_map(request(sampling={"top_p": 0.0}), EOS)["top_k"] == 1  # SGLang takes no 0; it means the best


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": {"seed": 1}},
        {"sampling": {"typical_p": 0.5}},
        {"sampling": {"bad_words_ids": ((5,),)}},
        {"sampling": {"guided": GuidedDecoding(regex="a")}},
        {"min_tokens": 3, "stop_token_ids": (2,)},
    ],
)
def test_what_sglang_cannot_do_goes_to_our_processor(fields: dict[str, Any]) -> None:
    one = request(**fields)
    assert is_steered(one)
    told = sampling_map(one, EOS)["custom_params"][REQUEST_KEY]
    assert msgspec.json.decode(told, type=TokenRequest) == msgspec.structs.replace(one, token_ids=[])


def test_a_token_that_we_draw_is_left_as_the_only_one() -> None:
    made = sampling_map(request(sampling={"seed": 1, "temperature": 0.7, "top_p": 0.5}), EOS)
    assert made["temperature"] == 0.0 and "top_p" not in made
    assert not is_steered(request(sampling={"seed": 1, "temperature": 0.0}))  # greedy needs no seed


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"token_ids": []}, "messages"),
        ({"token_ids": [5] * 50}, "messages"),
        ({"token_ids": [100]}, "messages"),
        ({"token_ids": [-1]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 49}, "max_tokens"),
        ({"min_tokens": 9}, "max_tokens"),
        ({"stop_token_ids": (100,)}, "stop_token_ids"),
        ({"sampling": {"logit_bias": {100: 1.0}}}, "logit_bias"),
        ({"sampling": {"logit_bias": {5: float("nan")}}}, "logit_bias"),
        ({"sampling": {"bad_words_ids": ((),)}}, "bad_words"),
        ({"sampling": {"bad_words_ids": ((5, 100),)}}, "bad_words"),
        ({"sampling": {"temperature": -1.0}}, "temperature"),
        ({"sampling": {"temperature": float("nan")}}, "temperature"),
        ({"sampling": {"top_p": 1.5}}, "top_p"),
        ({"sampling": {"typical_p": 0.0}}, "typical_p"),
        ({"sampling": {"repetition_penalty": 0.0}}, "repetition_penalty"),
        ({"sampling": {"repetition_penalty": 9.0}}, "repetition_penalty"),
        ({"sampling": {"presence_penalty": 9.0}}, "presence_penalty"),
        ({"sampling": {"top_k": -9}}, "top_k"),
        ({"sampling": {"logprobs": 5000}}, "logprobs"),
        ({"sampling": {"logprobs": 1, "seed": 3}}, "logprobs"),
    ],
)
def test_bad_requests_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_request(request(**fields), LIMITS)
    assert caught.value.field == named
    check_request(request(), LIMITS)
