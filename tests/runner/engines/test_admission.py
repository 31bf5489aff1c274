"""What the shared checks of requests say of beam search; the rest is tested through out=llamacpp."""

from __future__ import annotations

import pytest

from runner.engines.admission import HONOURED, check_request
from runner.errors import RequestError, UnsupportedField
from runner.types import SamplingParams, TokenRequest


def check(sampling: SamplingParams, *capabilities: str) -> None:
    request = TokenRequest(id="one", token_ids=[1, 2], sampling=sampling)
    check_request(
        request, engine="some", capabilities=(*HONOURED, *capabilities), vocab_size=10, context_length=32, adapters=()
    )


def test_beam_search_only_where_it_is_claimed() -> None:
    with pytest.raises(UnsupportedField, match="out=some has no beam search; leave beam_width at 1, got 3"):
        check(SamplingParams(beam_width=3))
    check(SamplingParams(beam_width=3, length_penalty=-1.0), "beam_width")


@pytest.mark.parametrize("wrong", [{"beam_width": 0}, {"length_penalty": float("nan")}])
def test_numbers_that_make_no_search(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError) as caught:
        check(SamplingParams(**wrong), "beam_width")  # type: ignore[arg-type]
    assert caught.value.field == next(iter(wrong))
