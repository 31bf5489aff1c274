"""Beam search against transformers' own, on a toy model: same ids, whatever the width, the penalty, the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runner.engines.native.beams import BeamSearch, num_candidates
from runner.engines.native.core import Core, CoreConfig, Sample
from runner.types import SamplingParams, TokenDelta, TokenRequest

VOCAB = 24


@pytest.fixture(scope="module")
def toy() -> Any:
    """A tiny LLaMA, seeded, float32, spread wide enough that sums of log-probabilities are no ties."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.6, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().to(torch.float32)


def wanted(toy: Any, request: TokenRequest, **options: Any) -> list[int]:
    """transformers' answer, with its end token."""
    import torch

    prompt = torch.tensor([request.token_ids])
    with torch.no_grad():
        ids = toy.generate(
            prompt, attention_mask=torch.ones_like(prompt), num_beams=request.sampling.beam_width, do_sample=False,
            early_stopping=False, length_penalty=request.sampling.length_penalty, max_new_tokens=request.max_tokens,
            eos_token_id=list(request.stop_token_ids) or None, pad_token_id=0, **options,
        )  # fmt: skip
    answer: list[int] = ids[0, prompt.shape[1] :].tolist()
    return answer


def candidates(toy: Any, token_ids: list[int], request: TokenRequest, *, ban: bool = False) -> list[tuple[int, float]]:
    import torch

    with torch.no_grad():
        logprobs = torch.log_softmax(toy(torch.tensor([token_ids])).logits[0, -1].float(), dim=-1)
    if ban:
        logprobs[list(request.stop_token_ids)] = -torch.inf
    best = torch.topk(logprobs, num_candidates(request))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(token, logprob) for token, logprob in pairs if logprob > -np.inf]


def ours(toy: Any, request: TokenRequest, *, max_batched_tokens: int = 64) -> TokenDelta:
    """The Core's answer, its logits from whole forward passes."""
    core = Core(CoreConfig(num_blocks=128, block_size=4, max_running=8, max_batched_tokens=max_batched_tokens,
                           context_length=256, vocab_size=VOCAB))  # fmt: skip
    core.add(request)
    outputs = []
    while core.has_work():
        scheduled = core.schedule()
        assert scheduled is not None
        core.check()
        samples = []
        for sequence in scheduled.sampled:
            ban = sequence.num_output < request.min_tokens
            samples.append(Sample(-1, candidates=candidates(toy, sequence.token_ids, request, ban=ban)))
        outputs += core.commit(scheduled, samples)
        core.check()
    (output,) = outputs
    assert output.delta is not None
    return output.delta


def make_request(prompt: list[int], width: int, penalty: float, max_tokens: int, **fields: Any) -> TokenRequest:
    sampling = SamplingParams(temperature=0.0, beam_width=width, length_penalty=penalty)
    return TokenRequest(id="beams", token_ids=prompt, sampling=sampling, max_tokens=max_tokens, **fields)


def check_equal(toy: Any, request: TokenRequest, **options: Any) -> str:
    delta = ours(toy, request)
    ids = wanted(toy, request, **options)
    if delta.finish == "stop":
        assert [*delta.token_ids, delta.stop_token_id] == ids
    else:
        assert delta.token_ids == ids
        assert len(ids) == request.max_tokens
    assert delta.cached_tokens == 0
    return str(delta.finish)


@pytest.mark.parametrize("width", [2, 3, 7])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("stops", [(2,), (2, 9, 13, 17)])
def test_equals_transformers(toy: Any, width: int, penalty: float, stops: tuple[int, ...]) -> None:
    dice = np.random.default_rng(width * 100 + len(stops))
    for max_tokens in (1, 12):
        prompt = dice.integers(0, VOCAB, size=int(dice.integers(1, 12))).tolist()
        check_equal(toy, make_request(prompt, width, penalty, max_tokens, stop_token_ids=stops))


def test_searches_that_end_early_are_among_these(toy: Any) -> None:
    ends = [
        check_equal(toy, make_request([prompt], 3, penalty, 16, stop_token_ids=(prompt % 7, 8)))
        for prompt in range(12)
        for penalty in (0.0, 1.0)
    ]
    assert ends.count("stop") >= 8
    assert ends.count("length") >= 1


def test_without_stop_ids_all_end_at_the_length(toy: Any) -> None:
    assert check_equal(toy, make_request([5, 6], 4, 1.0, 16)) == "length"


def test_min_tokens_as_transformers_min_new_tokens(toy: Any) -> None:
    for prompt in range(3):
        request = make_request([prompt], 3, 1.0, 12, stop_token_ids=(4, 8), min_tokens=5)
        check_equal(toy, request, min_new_tokens=5)


def test_chunks_and_budgets_change_nothing(toy: Any) -> None:
    request = make_request([3, 1, 4, 1, 5, 9, 2, 6], 4, 1.0, 10, stop_token_ids=(7,))
    assert ours(toy, request, max_batched_tokens=3) == ours(toy, request)


def test_logprobs_belong_to_the_tokens_of_the_answer(toy: Any) -> None:
    sampling = SamplingParams(beam_width=3, logprobs=2)
    request = TokenRequest(id="beams", token_ids=[1, 2, 3], sampling=sampling, max_tokens=6, stop_token_ids=(2,))
    delta = ours(toy, request)
    assert delta.logprobs is not None
    assert [one.token_id for one in delta.logprobs] == delta.token_ids
    for at, one in enumerate(delta.logprobs):
        rows = dict(candidates(toy, [1, 2, 3, *delta.token_ids[:at]], request))
        assert one.logprob == rows[one.token_id]
        assert [token for token, _ in one.top] == list(rows)[:2]


def test_an_absurd_penalty_is_no_crash() -> None:
    for penalty in (-1e6, 1e6):
        search = BeamSearch(make_request([1], 2, penalty, 3, stop_token_ids=(5,)))
        for _ in range(3):
            picks = search.advance([[(5, -0.5), (6, -1.0), (7, -2.0), (8, -3.0)]] * len(search._beams))
            if not picks:
                break
        assert search.has_answer


def test_enough_candidates_are_asked_for() -> None:
    assert num_candidates(make_request([1], 4, 1.0, 8)) == 8
    assert num_candidates(make_request([1], 2, 1.0, 8, stop_token_ids=(1, 2, 3, 4, 4))) == 6
