"""llama.cpp as an engine: the goldens of real models, batching, prefix reuse, pressure on the KV cache, cancels."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.models import make_random_llama_gguf
from runner.errors import ContextOverflow, EngineBusy, EngineStartFailed, RequestError, UnsupportedField, UsageError
from runner.types import SamplingParams
from tests.runner.engines.llamacpp_driver import GREEDY, Driver

pytestmark = [pytest.mark.llamacpp, pytest.mark.usefixtures("llamacpp_library")]

VOCAB = 512


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return make_random_llama_gguf(path, dim=64, layers=2, ffn=128, vocab=VOCAB, heads=2, ctx=512, dtype="f32", seed=7)


@pytest.fixture
def tiny(tiny_model: Path) -> Iterator[Driver]:
    with Driver(tiny_model, threads=1) as driver:
        yield driver


def prompt(seed: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB - 3, length)]


GOLDENS = [  # (file, golden, whether all ids must be equal where the golden's margin is no near-tie)
    ("stories260k.f32.gguf", "stories260k", True),
    ("stories260k.f16.gguf", "stories260k", False),
    ("stories260k.q8_0.gguf", "stories260k", False),
    ("stories3m.f16.gguf", "stories3m", True),
    ("stories3m-split.f16-00001-of-00003.gguf", "stories3m", True),
    ("stories3m.q8_0.gguf", "stories3m", False),
    ("tinychat-3m.f16.gguf", "tinychat-3m", True),
]


@pytest.mark.parametrize(("file", "golden", "is_exact"), GOLDENS)
def test_greedy_ids_equal_the_goldens(shared_data: Path, file: str, golden: str, is_exact: bool) -> None:
    cases = json.loads((shared_data / "models" / f"{golden}.golden.json").read_text())
    with Driver(shared_data / "models" / file, threads=1) as driver:
        for case in cases["prompts"]:
            wanted = case["greedy_ids"]
            answer = driver.ask(
                case["prompt_ids"], max_tokens=len(wanted), stop_token_ids=tuple(cases["stop_token_ids"])
            )
            made = answer.token_ids + ([] if answer.stop_token_id is None else [answer.stop_token_id])
            if is_exact and case["min_margin"] >= 0.001:
                assert made == wanted
                assert answer.finish == ("stop" if case["finished"] else "length")
            else:
                assert made[:4] == wanted[:4]


def test_batched_answers_equal_single_ones(tiny: Driver) -> None:
    prompts = [prompt(seed, length) for seed, length in enumerate((1, 3, 40, 41, 200, 260, 5, 77, 130, 9))]
    alone = [tiny.ask(tokens, max_tokens=30).token_ids for tokens in prompts]
    together = [tiny.submit(f"t{index}", tokens, max_tokens=30) for index, tokens in enumerate(prompts)]
    tiny.run()
    assert [answer.token_ids for answer in together] == alone
    assert all(answer.finish == "length" for answer in together)


def test_chunked_prefill_equals_whole_prefill(tiny_model: Path) -> None:
    tokens = prompt(1, 300)
    with Driver(tiny_model, threads=1) as whole:
        wanted = whole.ask(tokens, max_tokens=20).token_ids
    with Driver(tiny_model, threads=1, extra={"n_batch": 16, "n_ubatch": 8, "prefill_chunk": 5}) as chunked:
        first = chunked.submit("short", prompt(2, 4), max_tokens=100)
        second = chunked.submit("long", tokens, max_tokens=20)
        chunked.run()
    assert second.token_ids == wanted
    assert len(first.token_ids) == 100


def test_a_running_answer_goes_on_while_a_long_prompt_is_computed(tiny_model: Path) -> None:
    with Driver(tiny_model, threads=1, extra={"prefill_chunk": 16}) as driver:
        first = driver.submit("first", prompt(1, 4), max_tokens=200)
        driver.step()
        second = driver.submit("second", prompt(2, 320), max_tokens=4)
        before = len(first.token_ids)
        while not second.token_ids:
            driver.step()
        assert len(first.token_ids) - before >= 320 // 16


def test_the_second_request_reuses_the_first_ones_prefix(tiny: Driver) -> None:
    shared = prompt(1, 300)
    first = tiny.ask([*shared, 5, 6], max_tokens=10)
    second = tiny.ask([*shared, 7, 8, 9], max_tokens=10)
    assert first.cached_tokens == 0
    assert second.cached_tokens == 300
    with_history = [*shared, 5, 6, *first.token_ids, 11]
    assert tiny.ask(with_history, max_tokens=3).cached_tokens == 300 + 2 + 9  # the last answer token was never computed
    stats = tiny.engine.stats()
    assert stats["prefix_cache_hits"] == 300 + 311
    assert stats["prefix_cache_queries"] == 302 + 303 + 313


KV_LAYOUTS = pytest.mark.parametrize("extra", [{}, {"kv_cells": 4096}], ids=["own cells", "one pool"])


@KV_LAYOUTS
def test_reused_prefixes_do_not_change_answers(tiny_model: Path, extra: dict[str, int]) -> None:
    shared = prompt(1, 100)
    prompts = [[*shared[:cut], *prompt(cut, 10)] for cut in (100, 50, 100, 99, 1, 75)]
    with Driver(tiny_model, threads=1, extra=extra) as driver:
        reused = [driver.ask(tokens, max_tokens=12).token_ids for tokens in prompts]
        together = [driver.submit(f"t{index}", tokens, max_tokens=12) for index, tokens in enumerate(prompts)]
        driver.run()
    assert [answer.token_ids for answer in together] == reused
    with Driver(tiny_model, threads=1, extra={"prefix_cache": False}) as fresh:
        answers = [fresh.ask(tokens, max_tokens=12) for tokens in prompts]
    assert reused == [answer.token_ids for answer in answers]
    assert all(answer.cached_tokens == 0 for answer in answers)


@KV_LAYOUTS
def test_several_answers_to_one_prompt_compute_it_once(tiny_model: Path, extra: dict[str, int]) -> None:
    tokens = prompt(3, 400)
    with Driver(tiny_model, threads=1, extra=extra) as driver:
        answers = [driver.submit(f"n{index}", tokens, max_tokens=4) for index in range(6)]
        driver.run()
        num_used = driver.engine.stats()["kv_used_tokens"]
    assert sum(answer.cached_tokens or 0 for answer in answers) == 5 * 399
    assert len({tuple(answer.token_ids) for answer in answers}) == 1
    assert num_used < 400 + 6 * 4 if extra else num_used <= 6 * 404, "in one pool the prefix lies there once"


def test_a_full_cache_loses_no_token(tiny_model: Path) -> None:
    prompts = [prompt(seed, 60) for seed in range(10)]
    with Driver(tiny_model, threads=1) as roomy:
        wanted = [roomy.ask(tokens, max_tokens=150).token_ids for tokens in prompts]
    with Driver(tiny_model, threads=1, context_length=256, extra={"kv_cells": 512}) as tight:
        answers = [tight.submit(f"r{index}", tokens, max_tokens=150) for index, tokens in enumerate(prompts)]
        tight.run()
        stats = tight.engine.stats()
    assert stats["num_preemptions"] > 0
    assert stats["kv_used_tokens"] <= stats["kv_total_tokens"] == 512
    assert [answer.token_ids for answer in answers] == wanted


def test_sampled_answers_survive_preemption(tiny_model: Path) -> None:
    sampling = SamplingParams(temperature=0.8, seed=3, repetition_penalty=1.1, frequency_penalty=0.2)
    prompts = [prompt(seed, 60) for seed in range(6)]
    with Driver(tiny_model, threads=1) as roomy:
        wanted = [roomy.ask(tokens, sampling, max_tokens=150).token_ids for tokens in prompts]
    with Driver(tiny_model, threads=1, context_length=256, extra={"kv_cells": 512}) as tight:
        answers = [tight.submit(f"r{i}", tokens, sampling, max_tokens=150) for i, tokens in enumerate(prompts)]
        tight.run()
    assert [answer.token_ids for answer in answers] == wanted


def test_more_requests_than_slots_wait_their_turn(tiny_model: Path) -> None:
    with Driver(tiny_model, threads=1, max_running=2) as driver:
        answers = [driver.submit(f"r{index}", prompt(index, 5), max_tokens=5) for index in range(7)]
        driver.step()
        assert driver.engine.stats()["num_running"] == 2
        assert driver.engine.stats()["num_waiting"] == 5
        driver.run()
    assert all(len(answer.token_ids) == 5 for answer in answers)


def test_a_full_queue_is_busy(tiny_model: Path) -> None:
    with Driver(tiny_model, threads=1, max_running=1, max_queue=2) as driver:
        for index in range(3):
            driver.submit(f"r{index}", prompt(index, 5), max_tokens=5)
        with pytest.raises(EngineBusy, match="max-queue"):
            driver.submit("late", prompt(9, 5))
        driver.run()
        assert len(driver.ask(prompt(9, 5), max_tokens=5).token_ids) == 5


def test_cancelled_requests_give_their_slot_back(tiny_model: Path) -> None:
    with Driver(tiny_model, threads=1, max_running=1) as driver:
        driver.submit("a", prompt(1, 50), max_tokens=400)
        waiting = driver.submit("b", prompt(2, 50), max_tokens=5)
        driver.submit("c", prompt(3, 50), max_tokens=5)
        for _ in range(4):
            driver.step()
        driver.engine.cancel("c")
        driver.engine.cancel("a")
        driver.engine.cancel("nobody")
        driver.run()
        assert len(waiting.token_ids) == 5
        assert driver.engine.stats()["num_running"] == driver.engine.stats()["num_waiting"] == 0


def test_an_interrupted_prefill_loses_nothing(tmp_path: Path) -> None:
    """A model slow enough that the flag goes up in the middle of a decode."""
    model = make_random_llama_gguf(
        tmp_path / "slow.gguf", dim=512, layers=6, ffn=1536, vocab=VOCAB, heads=8, ctx=2048, dtype="f32"
    )
    tokens = prompt(1, 1500)
    with Driver(model, threads=1, extra={"n_batch": 512, "n_ubatch": 64}) as driver:
        wanted = driver.ask(tokens, max_tokens=8).token_ids
    with Driver(model, threads=1, extra={"n_batch": 512, "n_ubatch": 64}) as driver:
        other = driver.submit("other", prompt(2, 30), max_tokens=12)
        answer = driver.submit("long", tokens, max_tokens=8)
        aborts = 0
        for delay_s in (0.0, 0.01, 0.05, 0.1, 0.2):
            before = driver.engine.stats()["kv_used_tokens"]
            timer = threading.Timer(delay_s, driver.engine.interrupt)
            timer.start()
            driver.step()
            timer.join()
            aborts += driver.engine.stats()["kv_used_tokens"] - before not in (512, 256 + 1)
        driver.run()
        again = driver.ask(prompt(2, 30), max_tokens=12)
    assert aborts > 0
    assert answer.token_ids == wanted
    assert other.token_ids == again.token_ids


def test_interrupting_an_idle_engine_does_no_harm(tiny: Driver) -> None:
    wanted = tiny.ask(prompt(1, 100), max_tokens=5).token_ids
    tiny.engine.interrupt()
    assert tiny.ask(prompt(1, 100), max_tokens=5).token_ids == wanted


def test_max_tokens_stop_ids_and_min_tokens(tiny: Driver) -> None:
    tokens = prompt(1, 10)
    free = tiny.ask(tokens, max_tokens=20)
    assert len(free.token_ids) == 20
    stop = free.token_ids[6]
    first = free.token_ids.index(stop)
    stopped = tiny.ask(tokens, max_tokens=20, stop_token_ids=(stop,))
    assert stopped.token_ids == free.token_ids[:first]
    assert (stopped.finish, stopped.stop_token_id) == ("stop", stop)
    held = tiny.ask(tokens, max_tokens=20, min_tokens=15, stop_token_ids=(stop,))
    assert len(held.token_ids) >= 15
    assert stop not in held.token_ids
    nothing = tiny.ask(tokens, max_tokens=0)
    assert (nothing.token_ids, nothing.finish) == ([], "length")


def test_a_seed_gives_the_same_ids_alone_and_in_a_batch(tiny: Driver) -> None:
    sampling = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, seed=11)
    alone = tiny.ask(prompt(1, 30), sampling, max_tokens=40)
    noise = SamplingParams(temperature=1.5)
    for index in range(5):
        tiny.submit(f"noise{index}", prompt(index, 20 + index), noise, max_tokens=30)
    batched = tiny.submit("batched", prompt(1, 30), sampling, max_tokens=40)
    tiny.run()
    other = tiny.ask(prompt(1, 30), SamplingParams(temperature=1.0, top_k=50, top_p=0.9, seed=12), max_tokens=40)
    assert batched.token_ids == alone.token_ids
    assert other.token_ids != alone.token_ids


def test_the_engines_seed_makes_a_run_repeatable(tiny_model: Path) -> None:
    def run(seed: int) -> list[list[int]]:
        with Driver(tiny_model, threads=1, seed=seed) as driver:
            return [driver.ask(prompt(1, 5), SamplingParams(), max_tokens=10).token_ids for _ in range(3)]

    first = run(1)
    assert first == run(1) != run(2)
    assert first[0] != first[1]


def test_logprobs_are_of_the_raw_logits(shared_data: Path) -> None:
    golden = json.loads((shared_data / "models" / "stories260k.golden.json").read_text())
    with Driver(shared_data / "models" / "stories260k.f32.gguf", threads=1) as driver:
        for case in golden["prompts"][:3]:
            sampling = SamplingParams(temperature=0.0, logprobs=5, logit_bias={case["greedy_ids"][0]: -5.0})
            answer = driver.ask(case["prompt_ids"], sampling, max_tokens=1)
            found = answer.logprobs[0]
            assert [token for token, _ in found.top] == [token for token, _ in case["first_top5"]]
            assert [value for _, value in found.top] == pytest.approx([v for _, v in case["first_top5"]], abs=2e-4)
            assert answer.token_ids == [found.token_id]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"token_ids": []}, RequestError, "empty"),
        ({"token_ids": [VOCAB]}, RequestError, "no token id"),
        ({"token_ids": [-1]}, RequestError, "no token id"),
        ({"token_ids": [1] * 500, "max_tokens": 13}, ContextOverflow, "500 tokens .* 13"),
        ({"stop_token_ids": (VOCAB,)}, RequestError, "stop_token_ids"),
        ({"adapter": "nobody"}, RequestError, "none is loaded"),
        ({"sampling": SamplingParams(beam_width=2)}, UnsupportedField, "beam"),
        ({"sampling": SamplingParams(temperature=float("nan"))}, RequestError, "temperature"),
        ({"sampling": SamplingParams(temperature=-1)}, RequestError, "temperature"),
        ({"sampling": SamplingParams(top_p=1.5)}, RequestError, "top_p"),
        ({"sampling": SamplingParams(repetition_penalty=0.0)}, RequestError, "repetition_penalty"),
        ({"sampling": SamplingParams(logprobs=-1)}, RequestError, "logprobs"),
        ({"sampling": SamplingParams(logit_bias={VOCAB: 1.0})}, RequestError, "logit_bias"),
        ({"sampling": SamplingParams(logit_bias={1: float("nan")})}, RequestError, "logit_bias"),
        ({"sampling": SamplingParams(bad_words_ids=((),))}, RequestError, "bad_words"),
    ],
)
def test_what_can_never_run_is_refused(
    tiny: Driver, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"token_ids": [1, 2, 3], "sampling": GREEDY, **fields}
    with pytest.raises(error, match=message):
        tiny.submit("x", **arguments)
    assert not tiny.engine.has_work()


def test_a_prompt_that_just_fits_runs_to_the_end_of_the_context(tiny: Driver) -> None:
    answer = tiny.ask(prompt(1, 500), max_tokens=12)
    assert (len(answer.token_ids), answer.finish) == (12, "length")


def test_extreme_seeds_and_biases(tiny: Driver) -> None:
    for seed in (-1, 0, 2**64 - 1, 2**70):
        assert len(tiny.ask([1], SamplingParams(seed=seed), max_tokens=2).token_ids) == 2
    forced = SamplingParams(temperature=0.0, logit_bias={77: 1000.0})
    assert tiny.ask([1, 2], forced, max_tokens=3).token_ids == [77, 77, 77]


def test_a_request_with_nothing_left_to_choose_fails_alone(tiny: Driver) -> None:
    nothing = SamplingParams(temperature=0.0, logit_bias=dict.fromkeys(range(VOCAB), -float("inf")))
    doomed = tiny.submit("doomed", [1, 2], nothing, max_tokens=3)
    fine = tiny.submit("fine", [1, 2], max_tokens=3)
    tiny.run()
    assert doomed.error is not None
    assert "no usable logits" in doomed.error
    assert len(fine.token_ids) == 3


def test_broken_weights_fail_the_start_or_the_request(tmp_path: Path, tiny_model: Path) -> None:
    data = bytearray(tiny_model.read_bytes())
    data[-64 * 4 * 100 :] = np.full(64 * 100, np.nan, np.float32).tobytes()  # rows of output.weight
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data)
    with Driver(broken, threads=1) as driver:
        answer = driver.ask([1, 2, 3], max_tokens=3)
        assert answer.error is not None
        assert answer.error_kind == "engine"


def test_a_truncated_file_shows_llama_cpps_own_words(tmp_path: Path, tiny_model: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_model.read_bytes()[:-100_000])
    with pytest.raises(EngineStartFailed, match=r"cannot load .*cut.gguf: .*tensor") as failure:
        Driver(cut)
    assert "llama_model_load" in failure.value.log_tail


def test_an_unknown_architecture_is_named(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny_model.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0xlama", 1)
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(data)
    with pytest.raises(EngineStartFailed, match="unknown model architecture: 'xlama'"):
        Driver(strange)


def test_unknown_engine_arguments_are_named(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown engine argument 'nbatch'; allowed are n_batch"):
        Driver(tiny_model, extra={"nbatch": 3})
    with pytest.raises(UsageError, match="n_batch"):
        Driver(tiny_model, extra={"n_batch": "many"})
    with pytest.raises(UsageError, match="tensor-parallel-size"):
        Driver(tiny_model, tensor_parallel_size=2)


def test_a_context_beyond_memory_is_refused_with_the_numbers(tiny_model: Path) -> None:
    with pytest.raises(EngineStartFailed, match=r"needs .* GiB of KV cache"):
        Driver(tiny_model, context_length=2**31)


def test_quantised_kv_cache(tiny_model: Path) -> None:
    with Driver(tiny_model, threads=1, extra={"cache_type_k": "q8_0", "cache_type_v": "q8_0"}) as driver:
        assert len(driver.ask(prompt(1, 100), max_tokens=20).token_ids) == 20
        assert driver.info.details["kv_type"] == "q8_0/q8_0"


def test_info_says_what_is_honoured(tiny: Driver) -> None:
    capabilities = set(tiny.info.capabilities)
    assert {"temperature", "guided.grammar", "min_tokens", "embed", "logprobs"} <= capabilities
    assert "beam_width" not in capabilities
    assert tiny.info.context_length == 512
    assert tiny.info.details["kv_cells"] == 8 * 512
