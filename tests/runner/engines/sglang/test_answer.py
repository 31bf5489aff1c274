"""SGLang's cumulative chunks (as 0.5.23 sends them) as our deltas."""

from __future__ import annotations

from typing import Any

import pytest

from runner.engines.sglang.answer import Answer
from runner.errors import EngineFailed, RequestError
from runner.types import SamplingParams, TokenDelta, TokenLogprob, TokenRequest


def chunk(ids: list[int], finish: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    return {"output_ids": ids, "meta_info": {"id": "r", "finish_reason": finish, "cached_tokens": 3, **meta}}


def answer(**fields: Any) -> Answer:
    return Answer(TokenRequest(id="r", token_ids=[1], max_tokens=9, **fields))


def test_ids_are_new_ones_only_and_the_stop_token_is_not_among_them() -> None:
    one = answer(stop_token_ids=(2,))
    assert one.push(chunk([5])) == TokenDelta([5], cached_tokens=3)
    assert one.push(chunk([5, 6, 7])) == TokenDelta([6, 7])
    assert one.push(chunk([5, 6, 7])) is None
    assert not one.is_over
    assert one.push(chunk([5, 6, 7, 2], {"type": "stop", "matched": 2})) == TokenDelta([], "stop", None, 2)
    assert one.is_over


def test_length() -> None:
    assert answer().push(chunk([5, 6], {"type": "length", "length": 2})) == TokenDelta([5, 6], "length", None, None, 3)


def test_a_stop_id_that_sglang_was_not_told_ends_the_answer_here() -> None:
    one = answer(stop_token_ids=(7,))
    assert one.push(chunk([5, 7, 8])) == TokenDelta([5], "stop", None, 7, 3)
    assert not one.is_over  # it must still be aborted


def test_the_stop_id_as_the_last_token_that_fits_is_a_stop() -> None:
    delta = answer(stop_token_ids=(7,)).push(chunk([5, 7], {"type": "length", "length": 2}))
    assert delta == TokenDelta([5], "stop", None, 7, 3)


def test_stop_ids_do_not_count_below_min_tokens() -> None:
    one = answer(stop_token_ids=(7,), min_tokens=2)
    assert one.push(chunk([7, 7, 5, 7])) == TokenDelta([7, 7, 5], "stop", None, 7, 3)


def test_a_guided_answer_ends_at_the_models_end_tokens_too() -> None:
    one = Answer(TokenRequest(id="r", token_ids=[1], max_tokens=9), extra_stops=frozenset({2}))
    assert one.push(chunk([5, 2])) == TokenDelta([5], "stop", None, 2, 3)


def test_logprobs_are_cut_like_the_ids() -> None:
    one = answer(stop_token_ids=(2,), sampling=SamplingParams(logprobs=2))
    chosen = [(-0.1, 5, None), (-0.2, 6, None), (-0.3, 2, None)]
    tops = [[(-0.1, 5, None), (-2.0, 9, None)], [(-0.2, 6, None), (-3.4e38, 4, None)], [(-0.3, 2, None)]]
    first = one.push(chunk([5], output_token_logprobs=chosen[:1], output_top_logprobs=tops[:1]))
    assert first is not None and first.logprobs == [TokenLogprob(5, -0.1, [(5, -0.1), (9, -2.0)])]
    end = {"type": "stop", "matched": 2}
    last = one.push(chunk([5, 6, 2], end, output_token_logprobs=chosen, output_top_logprobs=tops))
    assert last is not None and last.logprobs == [TokenLogprob(6, -0.2, [(6, -0.2)])]  # a masked token is no choice


def test_without_top_logprobs_the_chosen_one_is_told() -> None:
    delta = answer(sampling=SamplingParams(logprobs=0)).push(chunk([5], output_token_logprobs=[(-0.1, 5, None)]))
    assert delta is not None and delta.logprobs == [TokenLogprob(5, -0.1, [])]


@pytest.mark.parametrize(
    ("finish", "error"),
    [
        ({"type": "abort", "message": "too long", "status_code": 400, "err_type": "BadRequestError"}, RequestError),
        ({"type": "abort", "message": "out of memory", "status_code": 500}, EngineFailed),
        ({"type": "abort", "message": "Aborted"}, EngineFailed),
        ({"type": "stop", "matched": "NaN happened"}, EngineFailed),
    ],
)
def test_an_abort_is_an_error_never_an_end(finish: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=finish.get("message") or finish["matched"]):
        answer().push(chunk([5], finish))
