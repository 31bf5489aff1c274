"""out=native as a whole, in this thread: goldens of real models, batching, chunks, prefix reuse, pressure, faults."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from model_cards.errors import ModelFileError  # noqa: E402
from runner.errors import ContextOverflow, EngineBusy, EngineStartFailed, LlmrunError, RequestError, UsageError  # noqa: E402
from runner.types import GuidedDecoding, SamplingParams  # noqa: E402
from tests.runner.engines.native.native_driver import Driver, make_toy_llama  # noqa: E402

VOCAB = 512


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_llama(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def driver(toy: Path) -> Iterator[Driver]:
    with Driver(toy) as driver:
        yield driver


def prompt(seed: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, VOCAB, length)]


def naive(folder: Path, tokens: list[int], count: int) -> list[int]:
    """transformers, the whole text again for each token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = list(tokens)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(tokens) :]


@pytest.mark.parametrize(
    ("file", "golden"),
    [
        ("stories260k-hf", "stories260k"),
        ("stories260k.f32.gguf", "stories260k"),
        ("stories3m-hf", "stories3m"),
        ("tinychat-3m-gpt2-hf", "tinychat-3m"),
    ],
)
def test_greedy_ids_equal_the_goldens(shared_data: Path, file: str, golden: str) -> None:
    cases = json.loads((shared_data / "models" / f"{golden}.golden.json").read_text())
    with Driver(shared_data / "models" / file) as driver:
        for case in cases["prompts"]:
            wanted = case["greedy_ids"]
            stop_ids = tuple(cases["stop_token_ids"])
            answer = driver.ask(case["prompt_ids"], max_tokens=len(wanted), stop_token_ids=stop_ids)
            made = answer.token_ids + ([] if answer.stop_token_id is None else [answer.stop_token_id])
            if case["min_margin"] >= 0.001:
                assert made == wanted
                assert answer.finish == ("stop" if case["finished"] else "length")
            else:
                assert made[:4] == wanted[:4]


LENGTHS = (1, 3, 40, 41, 200, 260, 5, 77, 130, 9)


@pytest.fixture(scope="module")
def wanted(toy: Path) -> list[list[int]]:
    return [naive(toy, prompt(seed, length), 24) for seed, length in enumerate(LENGTHS)]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"max_batched_tokens": 16},
        {"num_blocks": 40, "block_size": 16},  # room for little more than the longest: others are preempted
        {"prefix_cache": False},
        {"backend": "torch"},
    ],
    ids=["default", "chunked", "preempted", "no-prefix-cache", "torch"],
)
def test_many_at_once_equal_the_naive_loop(toy: Path, wanted: list[list[int]], extra: dict[str, Any]) -> None:
    with Driver(toy, context_length=320, extra=extra) as driver:
        for round_ in range(2):  # the second finds prefixes
            answers = [
                driver.submit(f"{round_}-{seed}", prompt(seed, length), max_tokens=24)
                for seed, length in enumerate(LENGTHS)
            ]
            driver.run()
            assert [answer.token_ids for answer in answers] == wanted
        if extra.get("num_blocks"):
            assert driver.engine.stats()["num_preemptions"] > 0
        driver.engine._core.check()


def test_a_long_prefix_is_reused(driver: Driver) -> None:
    shared = prompt(1, 200)
    first = driver.ask([*shared, 5], max_tokens=4)
    second = driver.ask([*shared, 6], max_tokens=4)
    again = driver.ask([*shared, 5], max_tokens=4)
    assert first.cached_tokens == 0
    assert second.cached_tokens is not None and second.cached_tokens >= 192
    assert again.token_ids == first.token_ids


def test_a_seed_gives_the_same_ids_alone_and_in_a_batch(driver: Driver) -> None:
    hot = SamplingParams(temperature=1.0, top_p=0.95, seed=11)
    alone = driver.ask(prompt(3, 30), hot, max_tokens=20).token_ids
    others = [driver.submit(f"other{n}", prompt(n, 20 + n), SamplingParams(seed=n), max_tokens=30) for n in range(9)]
    same = driver.submit("same", prompt(3, 30), hot, max_tokens=20)
    driver.run()
    assert same.token_ids == alone
    assert len({tuple(answer.token_ids) for answer in others}) == 9


def test_log_probabilities_are_transformers(toy: Path, driver: Driver) -> None:
    from transformers import AutoModelForCausalLM

    tokens = prompt(2, 20)
    answer = driver.ask(tokens, SamplingParams(temperature=0.0, logprobs=3), max_tokens=5)
    model = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32)
    with torch.inference_mode():
        rows = model(torch.tensor([tokens + answer.token_ids])).logits[0].log_softmax(-1)[len(tokens) - 1 : -1]
    for row, told, token in zip(rows, answer.logprobs, answer.token_ids, strict=True):
        assert told.token_id == token
        assert math.isclose(told.logprob, float(row[token]), abs_tol=1e-4)
        assert [best for best, _ in told.top] == row.topk(3).indices.tolist()


@pytest.mark.parametrize(("width", "length_penalty"), [(2, 1.0), (4, 1.0), (4, 0.0), (3, 2.0)])
def test_beam_search_equals_transformers(toy: Path, driver: Driver, width: int, length_penalty: float) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32)
    for seed in range(3):
        tokens, eos = prompt(seed, 12), 7 + seed
        out = model.generate(
            torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long), num_beams=width,
            do_sample=False, max_new_tokens=12, length_penalty=length_penalty, eos_token_id=eos, pad_token_id=0,
            early_stopping=False,
        )  # fmt: skip
        wanted = out[0, len(tokens) :].tolist()
        sampling = SamplingParams(temperature=0.0, beam_width=width, length_penalty=length_penalty)
        answer = driver.ask(tokens, sampling, max_tokens=12, stop_token_ids=(eos,))
        made = answer.token_ids + ([] if answer.stop_token_id is None else [answer.stop_token_id])
        assert made == [token for token in wanted if token != 0 or token in made]


def test_guided_answers_match_their_schema() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    with Driver("demo-hf") as driver:
        sampling = SamplingParams(temperature=0.0, guided=GuidedDecoding(json_schema=schema))
        answer = driver.ask([296, 289, 279], sampling, max_tokens=60, stop_token_ids=(0, 2))
        from model_cards.resolve import resolve
        from model_cards.tokenizer import load_tokenizer

        text = load_tokenizer(resolve("demo-hf")).decode(answer.token_ids)
        assert isinstance(json.loads(text)["n"], int)


def test_what_can_never_fit_is_refused_with_the_numbers(driver: Driver) -> None:
    with pytest.raises(ContextOverflow, match=r"510 tokens.*512"):
        driver.submit("big", prompt(1, 510), max_tokens=3)
    with pytest.raises(RequestError, match="512 is no token id"):
        driver.submit("wrong", [512], max_tokens=3)


def test_a_full_queue_refuses(toy: Path) -> None:
    with Driver(toy, max_running=1, max_queue=1) as driver:
        driver.submit("a", [5], max_tokens=3)
        driver.submit("b", [5], max_tokens=3)
        with pytest.raises(EngineBusy):
            driver.submit("c", [5], max_tokens=3)


def test_ten_thousand_requests_and_a_storm_of_cancels(toy: Path) -> None:
    with Driver(toy, max_running=64) as driver:
        answers = [driver.submit(str(n), [5 + n % 100], max_tokens=2) for n in range(10_000)]
        for n in range(10_000):
            if n % 50:
                driver.engine.cancel(str(n))
        driver.run()
        kept = [answer for n, answer in enumerate(answers) if n % 50 == 0]
        assert all(answer.finish == "length" and len(answer.token_ids) == 2 for answer in kept)
        assert not driver.engine.has_work()
        driver.engine._core.check()
        assert driver.engine.stats()["kv_used_tokens"] == 0


def test_a_step_that_runs_out_of_memory_ends_its_own_requests(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    good = driver.ask(prompt(1, 20), max_tokens=5).token_ids
    worker: Any = driver.engine._worker

    def fail(_plan: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "execute", fail)
        answer = driver.submit("unlucky", prompt(1, 20), max_tokens=5)
        driver.step()
    assert (
        answer.error is not None
        and "out of memory in a step" in answer.error
        and "--max-batched-tokens" in answer.error
    )
    assert answer.error_kind == "engine"
    assert driver.ask(prompt(1, 20), max_tokens=5).token_ids == good


def test_logits_that_are_no_numbers_end_one_request(toy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(toy / "model.safetensors")
    tensors["model.embed_tokens.weight"][9] = math.nan
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((toy / "config.json").read_bytes())
    with Driver(tmp_path) as driver:
        bad = driver.submit("bad", [5, 9], max_tokens=5)
        fine = driver.submit("fine", [5, 6], max_tokens=5)
        driver.run()
        assert bad.error is not None
        assert fine.finish == "length"


def test_a_broken_shard_is_named(toy: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((toy / name).read_bytes())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises((ModelFileError, EngineStartFailed), match=r"model\.safetensors"):
        Driver(tmp_path)


def test_weights_of_another_model_are_named(toy: Path, tmp_path: Path) -> None:
    config = json.loads((toy / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((toy / "model.safetensors").read_bytes())
    with pytest.raises((LlmrunError, ModelFileError), match=r"lack tensor model\.layers\.2\."):
        Driver(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "--dtype: got 'float8'; allowed: auto, float32"),
        ({"quantize": "int2"}, "--quantize: got 'int2'; allowed: int8, int4"),
        ({"gpu_layers": 3}, "leave --gpu-layers out"),
        ({"kv_cache_block_size": 24}, "power of two"),
        ({"extra": {"blocks": 3}}, "unknown engine argument 'blocks'; allowed are"),
        ({"extra": {"backend": "mkl"}}, "native: backend: got 'mkl'; allowed: auto, torch, cpu, triton"),
        ({"extra": {"num_blocks": "many"}}, "engine arguments: Expected"),
        ({"num_nodes": 2, "tensor_parallel_size": 2}, "--leader-addr"),
        ({"num_nodes": 2, "tensor_parallel_size": 3, "leader_addr": "h:1"}, "cannot be divided"),
    ],
)
def test_options_that_make_no_sense(toy: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Driver(toy, **options)


def test_a_context_far_beyond_the_trained_one_is_refused(toy: Path) -> None:
    with pytest.raises(EngineStartFailed, match=r"99,999,999 is more than 32 times the 512.* at most 16,384"):
        Driver(toy, context_length=99_999_999)


def test_a_context_that_does_not_fit_says_what_to_do(toy: Path) -> None:
    with pytest.raises(EngineStartFailed, match=r"room for 64 tokens.*--context-length 64"):
        Driver(toy, context_length=512, extra={"num_blocks": 4, "block_size": 16})
