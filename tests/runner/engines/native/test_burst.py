"""Bursts: the ids of single steps, whoever joins, leaves or stops meanwhile; fake model and C++ decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engines.native.core import Core, CoreConfig
from runner.engines.native.sampling_state import make_state
from runner.types import SamplingParams, TokenRequest
from tests.runner.engines.native.fake_model import Client, FakeModel, naive, run, step
from tests.runner.engines.native.test_core import (
    beams,
    check_answer,
    configs,
    happenings_of,
    make_config,
    make_request,
    play,
    prompts,
)

GREEDY = SamplingParams(temperature=0.0)
requests = st.builds(
    make_request,
    st.just(""),
    prompts,
    st.integers(1, 30),
    stop_token_ids=st.sampled_from([(), (3,), (0, 7, 11)]),
    adapter=st.sampled_from([None, None, "a"]),
    sampling=st.sampled_from([GREEDY] * 6 + [SamplingParams(), beams(2)]),  # the fake model is greedy for all
)


@settings(max_examples=400, deadline=None)
@given(configs, happenings_of(requests), st.integers(2, 20))
def test_bursts_equal_single_steps_whatever_happens(
    config: CoreConfig, events: list[tuple[str, object]], most_steps: int
) -> None:
    play(config, events, most_steps)


class Engine:
    """A core and a fake model with time for long bursts."""

    def __init__(self, **changes: object) -> None:
        config = make_config(**changes)
        self.core, self.client = Core(config), Client()
        self.model = FakeModel(config.num_blocks, config.block_size, most_steps=100)

    def add(self, name: str, prompt: list[int], max_tokens: int, **fields: Any) -> TokenRequest:
        request = make_request(name, prompt, max_tokens, **{"sampling": GREEDY, **fields})
        self.core.add(request, make_state(request, seed=0))
        return request

    def steps(self, count: int) -> list[int]:
        """Run so many; how many tokens each told."""
        told = []
        for _ in range(count):
            before = self._num_heard()
            step(self.core, self.model, self.client)
            told.append(self._num_heard() - before)
        return told

    def _num_heard(self) -> int:
        return sum(len(delta.token_ids) for deltas in self.client.deltas.values() for delta in deltas)


def test_the_first_token_comes_alone_and_bursts_end_with_blocks_and_answers() -> None:
    engine = Engine(block_size=8)
    request = engine.add("a", [1, 2, 3], 20)
    assert engine.steps(4) == [1, 5, 8, 6]  # 3 + 1 tokens; filled up to 9, of which 8 are computed; to 17; the end
    check_answer(engine.client, request, is_whole=True)


def test_the_shortest_room_counts_for_all() -> None:
    engine = Engine(block_size=8)
    engine.add("a", [1, 2, 3], 20)
    engine.add("b", [4] * 6, 20)
    assert engine.steps(3) == [2, 4, 6]  # b: 7, then 9 tokens; a: 4, 6, 9
    assert engine.core.burst(scheduled_of(engine)) is not None


def scheduled_of(engine: Engine) -> Any:
    return engine.core.schedule()


def test_a_stop_id_within_a_burst_ends_it() -> None:
    free, _ = naive(make_request("", [5, 6], 12))
    at = next(n for n in range(3, 12) if free[n] not in free[:n])
    engine = Engine(block_size=32)
    request = engine.add("a", [5, 6], 12, stop_token_ids=(free[at],))
    other = engine.add("b", [7, 8, 9], 12)
    run(engine.core, engine.model, engine.client)
    assert engine.client.answer("a") == (free[:at], "stop")
    assert engine.client.deltas["a"][-1].stop_token_id == free[at]
    check_answer(engine.client, request, is_whole=True)
    check_answer(engine.client, other, is_whole=True)


def test_who_comes_waits_for_one_burst_only() -> None:
    engine = Engine(block_size=32)
    engine.add("a", [1, 2, 3], 60)
    assert engine.steps(2) == [1, 29]
    engine.add("b", [4, 5], 3)
    assert engine.steps(1) == [2]
    assert engine.client.deltas["b"][0].cached_tokens == 0


def test_what_waits_for_room_stops_bursts() -> None:
    engine = Engine(max_running=1)
    engine.add("a", [1, 2], 9)
    engine.add("b", [1, 2], 9)
    assert engine.steps(3) == [1, 1, 1]


def test_a_cancelled_request_leaves_nothing_behind() -> None:
    engine = Engine(block_size=4)
    engine.add("a", [1, 2, 3], 40)
    engine.steps(4)
    engine.core.cancel("a")
    engine.core.check()
    assert not engine.core.has_work()
    assert engine.core.stats()["kv_used_tokens"] == 0


def test_blocks_that_a_burst_filled_are_a_prefix_for_others() -> None:
    engine = Engine(block_size=4)
    engine.add("a", [1, 2, 3], 17)
    run(engine.core, engine.model, engine.client)
    answer, _ = engine.client.answer("a")
    engine.add("b", [1, 2, 3, *answer[:12]], 3)
    run(engine.core, engine.model, engine.client)
    assert engine.client.deltas["b"][0].cached_tokens == 12
    assert engine.client.answer("b")[0] == answer[12:15]


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": SamplingParams(temperature=1.0)},
        {"sampling": SamplingParams(temperature=0.0, logprobs=0)},
        {"sampling": SamplingParams(temperature=0.0, presence_penalty=0.5)},
        {"sampling": SamplingParams(temperature=0.0, logit_bias={3: 1.0})},
        {"min_tokens": 8},
    ],
    ids=["drawn", "logprobs", "penalties", "bias", "min-tokens"],
)
def test_what_is_not_plain_greedy_goes_step_by_step_with_all_beside_it(fields: dict[str, Any]) -> None:
    engine = Engine(block_size=32)
    engine.add("a", [1, 2, 3], 40)
    engine.add("b", [4, 5], 4, **fields)
    assert engine.steps(4) == [2] * 4
    assert engine.steps(2)[-1] > 1  # b has ended: the room for a burst is there again


# --- the C++ decoder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.runner.engines.native.native_driver import make_toy_llama

    return make_toy_llama(tmp_path_factory.mktemp("toy"))


def random_prompt(seed: int) -> list[int]:
    draw = np.random.default_rng(seed)
    return [int(token) for token in draw.integers(3, 512, int(draw.integers(1, 70)))]


def test_ids_of_a_random_mix_equal_single_steps(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of all lengths and kinds come in one by one; the same again without bursts."""
    from tests.runner.engines.native.native_driver import Driver

    with Driver(toy, context_length=160) as driver:
        free = driver.ask(random_prompt(0), max_tokens=40).token_ids

    def answers() -> tuple[list[Any], int]:
        draw = np.random.default_rng(5)
        with Driver(toy, context_length=160, extra={"num_blocks": 60}) as driver:
            made, num_steps = [], 0
            for n in range(24):
                sampling, longest = (GREEDY, 60) if n % 6 else (SamplingParams(temperature=0.8, seed=n), 9)
                stops = (free[int(draw.integers(40))], 77) if n % 3 else ()
                made.append(driver.submit(str(n), random_prompt(n % 9), sampling, stop_token_ids=stops,
                                          max_tokens=int(draw.integers(1, longest))))  # fmt: skip
                for _ in range(int(draw.integers(0, 6))):
                    if driver.engine.has_work():
                        driver.step()
                        driver.engine._core.check()
                        num_steps += 1
            while driver.engine.has_work():
                driver.step()
                num_steps += 1
            return [(one.token_ids, one.finish, one.stop_token_id) for one in made], num_steps

    bursts, few = answers()
    with monkeypatch.context() as patch:
        patch.setattr(Core, "burst", lambda self, scheduled: None)
        singles, many = answers()
    assert bursts == singles
    assert {finish for _, finish, _ in bursts} == {"stop", "length"}
    assert few < 0.8 * many


def test_a_burst_before_unusable_logits_tells_what_was_right(toy: Path, tmp_path: Path) -> None:
    """The embedding of the fourth token is broken: it is still heard, and what follows it cannot be chosen."""
    from safetensors.torch import load_file, save_file

    from tests.runner.engines.native.native_driver import Driver

    with Driver(toy) as driver:
        good = driver.ask([5, 6], max_tokens=12).token_ids
    assert good[3] not in [5, 6, *good[:3]]
    tensors = load_file(toy / "model.safetensors")
    tensors["model.embed_tokens.weight"][good[3]] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((toy / "config.json").read_bytes())
    with Driver(tmp_path) as driver:
        answer = driver.submit("a", [5, 6], max_tokens=12)
        driver.run()
    assert answer.token_ids == good[:4]
    assert answer.error is not None and "no usable logits" in answer.error
