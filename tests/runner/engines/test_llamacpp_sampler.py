"""The sampler against plain definitions: sorted lists and float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from runner.engines.llamacpp.sampler import Sampler, draw, nucleus, token_logprob, top_ids, typical
from runner.errors import EngineFailed
from runner.types import SamplingParams, TokenRequest

VOCAB = 1000
ROW = np.random.default_rng(1).standard_normal(VOCAB).astype(np.float32) * 3


def make_sampler(tokens: tuple[int, ...] = (1, 2), seed: int = 0, **params: object) -> Sampler:
    fields = {name: params.pop(name) for name in ("min_tokens", "stop_token_ids") if name in params}
    request = TokenRequest(id="x", token_ids=list(tokens), sampling=SamplingParams(**params), **fields)
    return Sampler(request, vocab_size=VOCAB, seed=seed)


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 3000), elements=st.floats(-50, 0, width=32)),
    st.integers(1, 400),
)
def test_top_ids_are_those_of_a_stable_sort(logits: np.ndarray, count: int) -> None:
    wanted = np.argsort(-logits, kind="stable")[:count]
    assert top_ids(logits, count).tolist() == wanted.tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), st.integers(1, 5000))
def test_the_nucleus_is_the_smallest_that_reaches_top_p(seed: int, top_p: float, size: int) -> None:
    logits = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    logits -= logits.max()
    ids = nucleus(logits, top_p)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum()
    mass = probabilities[ids]
    assert mass.sum() >= top_p - 1e-5
    assert mass[:-1].sum() <= top_p + 1e-5
    assert (np.diff(mass) <= 0).all()


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    counts = np.bincount([draw(logits, (index + 0.5) / 1000) for index in range(1000)], minlength=4)
    assert counts.tolist() == [500, 250, 125, 125]
    assert draw(logits, 1.0 - 1e-17) == 3


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 1}, 1),
        ({"top_k": 7}, 7),
        ({"top_p": 1e-9}, 1),
        ({"top_k": 50, "top_p": 0.9, "min_p": 0.05}, 20),
        ({"min_p": 1.0}, 1),
        ({"typical_p": 0.2}, 200),
        ({"temperature": 1e-4}, 1),
    ],
)
def test_truncation_bounds_what_can_be_drawn(params: dict[str, float], allowed: int) -> None:
    sampler = make_sampler(**params)
    drawn = {sampler.choose(ROW, [1, 2], 0) for _ in range(300)}
    assert 1 <= len(drawn) <= allowed
    if params.keys() == {"top_k"}:
        assert drawn <= set(np.argsort(-ROW)[: params["top_k"]].tolist())


def test_typical_keeps_what_is_nearest_to_the_entropy() -> None:
    probabilities = np.array([0.6, 0.1, 0.1, 0.1, 0.1], np.float32)
    entropy = -float((probabilities * np.log(probabilities)).sum())
    distance = np.abs(-np.log(probabilities) - entropy)
    logits = np.log(probabilities / probabilities.max())
    assert typical(logits.astype(np.float32), 0.05).tolist() == [int(distance.argmin())]


def test_a_row_is_never_changed() -> None:
    before = ROW.copy()
    sampler = make_sampler(logit_bias={3: 5.0}, repetition_penalty=1.5, presence_penalty=1.0, bad_words_ids=((4,),))
    sampler.choose(ROW, [1, 2], 0)
    assert (before == ROW).all()


def test_penalties() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[:6] = [4.0, 3.9, -1.0, 3.8, 3.7, 3.6]
    greedy = {"temperature": 0.0}
    assert make_sampler(tokens=(0,), repetition_penalty=2.0, **greedy).choose(row, [0], 0) == 1
    assert make_sampler(tokens=(0,), presence_penalty=2.0, **greedy).choose(row, [0], 0) == 0  # only of the output
    counting = make_sampler(frequency_penalty=0.06, **greedy)
    chosen = []
    for _ in range(5):
        chosen.append(counting.choose(row, [9, *chosen], len(chosen)))
        counting.accept(chosen[-1])
    assert chosen == [0, 0, 1, 0, 1]


def test_bad_words_are_not_completed() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[5], row[6] = 2.0, 1.0
    sampler = make_sampler(temperature=0.0, bad_words_ids=((3, 4, 5),))
    assert sampler.choose(row, [3, 4], 0) == 6
    assert sampler.choose(row, [4, 4], 0) == 5
    assert sampler.choose(row, [4], 0) == 5
    assert make_sampler(temperature=0.0, bad_words_ids=((5,),)).choose(row, [4], 0) == 6


def test_stop_ids_wait_for_min_tokens() -> None:
    sampler = make_sampler(temperature=0.0, min_tokens=2, stop_token_ids=(int(ROW.argmax()),))
    assert sampler.choose(ROW, [1], 1) != int(ROW.argmax())
    assert sampler.choose(ROW, [1], 2) == int(ROW.argmax())


def test_same_seed_same_draws() -> None:
    draws = [[make_sampler(seed=seed).choose(ROW, [1], 0) for seed in range(20)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unusable_logits_are_an_error(value: float, temperature: float) -> None:
    row = ROW.copy()
    row[17] = value
    sampler = make_sampler(temperature=temperature, logit_bias={1: 0.5})
    with pytest.raises(EngineFailed, match="no usable logits"):
        sampler.choose(row, [1], 0)


def test_logprobs_are_a_log_softmax() -> None:
    exact = ROW.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max()).sum()) + exact.max()
    found = token_logprob(ROW, 5, 3)
    order = np.argsort(-ROW)[:3].tolist()
    assert found.logprob == pytest.approx(exact[5], abs=1e-5)
    assert [token for token, _ in found.top] == order
    assert [value for _, value in found.top] == pytest.approx(exact[order].tolist(), abs=1e-5)
    assert token_logprob(ROW, 5, 0).top == []
