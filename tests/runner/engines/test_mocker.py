"""The mocker's scheduler, step by step in this process (its streams are in test_conformance.py)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_cards.card import ModelCard
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.mock_blocks import BlockPool, block_hashes
from runner.engines.mocker import MockEngine, plain_token_ids
from runner.errors import ContextOverflow, EngineStartFailed
from runner.types import SamplingParams, TokenDelta, TokenRequest


def started(**extra: Any) -> MockEngine:
    engine = MockEngine()
    card = ModelCard(name="m", source="m", vocab_size=300, context_length=4096, eos_token_ids=(0,))
    engine.start(EngineSpec(name="mocker", card=card, options=EngineOptions(extra={"speedup_ratio": 0, **extra})))
    return engine


def ask(name: str, prompt: list[int], max_tokens: int = 4, **fields: Any) -> TokenRequest:
    return TokenRequest(id=name, token_ids=prompt, max_tokens=max_tokens, **fields)


def drain(engine: MockEngine, bound: int = 20_000) -> dict[str, list[TokenDelta]]:
    answers: dict[str, list[TokenDelta]] = {}
    while engine.has_work():
        bound -= 1
        assert bound, "the scheduler makes no progress"
        for output in engine.step():
            assert output.delta is not None
            answers.setdefault(output.id, []).append(output.delta)
    return answers


def ids_of(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def test_the_second_request_finds_the_prefix_in_the_cache() -> None:
    engine = started(block_size=16)
    prompt = list(range(100))
    engine.add(ask("a", prompt))
    assert drain(engine)["a"][0].cached_tokens == 0
    engine.add(ask("b", [*prompt[:70], 7, 7, 7]))
    assert drain(engine)["b"][0].cached_tokens == 64
    engine = started(block_size=16, enable_prefix_caching=False)
    for name in "ab":
        engine.add(ask(name, prompt))
        assert drain(engine)[name][0].cached_tokens == 0


def test_a_long_prompt_is_chunked_and_others_decode_meanwhile() -> None:
    engine = started(max_num_batched_tokens=32)
    engine.add(ask("short", [1, 2, 3], 20))
    engine.step()
    engine.add(ask("long", list(range(200)), 2))
    made: list[str] = []
    while "long" not in made:
        made += [output.id for output in engine.step()]
    assert made.count("short") >= 6


def test_too_few_blocks_preempt_and_still_all_end() -> None:
    engine = started(num_gpu_blocks=12, block_size=4, watermark=0.0, enable_prefix_caching=False)
    for at in range(4):
        engine.add(ask(f"r{at}", [at] * 8, 30))
    answers = drain(engine)
    assert all(len(ids_of(deltas)) == 30 for deltas in answers.values())
    assert len(answers) == 4
    assert engine.stats()["num_preemptions"] > 0
    assert engine.stats()["kv_used_tokens"] == 0


def test_slots_are_a_limit() -> None:
    engine = started(max_num_seqs=2)
    for at in range(5):
        engine.add(ask(f"r{at}", [1, at], 3))
    engine.step()
    assert engine.stats()["num_running"] == 2
    assert engine.stats()["num_waiting"] == 3
    assert len(drain(engine)) == 5


def test_seeds_choose_the_ids_and_eos_is_never_among_them() -> None:
    def answer(seed: int | None) -> list[int]:
        engine = started()
        engine.add(ask("a", [1, 2, 3], 300, sampling=SamplingParams(seed=seed)))
        return ids_of(drain(engine)["a"])

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)
    assert 0 not in answer(None)


def test_answers_may_end_by_themselves() -> None:
    engine = started(mean_output_tokens=5)
    engine.add(ask("a", [1, 2, 3], 100, stop_token_ids=(0,)))
    deltas = drain(engine)["a"]
    assert 1 <= len(ids_of(deltas)) <= 10
    assert (deltas[-1].finish, deltas[-1].stop_token_id) == ("stop", 0)


def test_options_are_checked() -> None:
    with pytest.raises(EngineStartFailed, match="unknown field `blocks`; known are num_gpu_blocks"):
        started(blocks=3)
    with pytest.raises(EngineStartFailed, match="block_size is 0; at least 1"):
        started(block_size=0)
    with pytest.raises(ContextOverflow, match="exceed the context of 4,096"):
        started().add(ask("a", [1] * 4000, 97))


def test_without_a_tokenizer_all_ids_but_eos_are_plain() -> None:
    assert plain_token_ids(ModelCard(name="m", source="m", vocab_size=5, eos_token_ids=(1,))) == [0, 2, 3, 4]


def test_answers_are_text_of_the_model(toy_card: ModelCard) -> None:
    from model_cards.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(toy_card)
    ids = plain_token_ids(toy_card)
    assert ids
    assert all(tokenizer.token_bytes(token_id).strip().isalpha() for token_id in ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 3)), max_size=60))
def test_the_pool_never_loses_a_block(actions: list[tuple[bool, int, int]]) -> None:
    pool = BlockPool(16, enable_prefix_caching=True)
    tables = []
    for is_take, length, family in actions:
        hashes = block_hashes([family] * length, 4)
        num_blocks = length // 4 + 1
        if is_take and pool.num_needed(hashes, num_blocks) <= pool.num_free:
            tables.append(pool.take(hashes, num_blocks))
            assert len(tables[-1]) == num_blocks
        elif tables and not is_take:
            pool.give_back(tables.pop(length % len(tables)))
        assert 0 <= pool.num_used <= 16
    for table in tables:
        pool.give_back(table)
    assert pool.num_free == 16
