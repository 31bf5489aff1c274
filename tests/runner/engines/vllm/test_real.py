"""The real vLLM (make test-vllm): conformance, known answers, what a client may send, deaths. About ten minutes.

Uses the Python that `llmrun engines install vllm` made, or LLMRUN_VLLM_PYTHON.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from model_cards.resolve import resolve
from runner.engines import vllm
from runner.engines.base import Engine, EngineOptions, EngineSpec
from runner.engines.process import ProcessEngine
from runner.engines.vllm.environment import ENVIRONMENT
from runner.errors import EngineDied, EngineError, LlmrunError, RequestError
from runner.types import GuidedDecoding, SamplingParams, TokenRequest
from tests.conformance import CHECKS, Check, EngineCase, run_check

PYTHON = ENVIRONMENT.find()
PRESETS = Path(__file__).parents[4] / "model_cards" / "presets" / "demo"
KNOWN = json.loads((PRESETS / "conformance.json").read_text())
HONOURS = frozenset({"stop", "min_tokens", "seed", "max_running", "max_queue"})
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PYTHON is None, reason="no vllm: llmrun engines install vllm"),
]


def make(**limits: Any) -> Engine:
    options = EngineOptions(threads=1, context_length=1024, engine_python=PYTHON, start_timeout_s=300, **limits)
    return vllm.make_engine(EngineSpec(name="vllm", card=resolve("demo-hf"), options=options))


def _prompts() -> list[list[int]]:
    ids = [case["prompt_ids"] + case["greedy_ids"] for case in KNOWN["cases"][:60]]
    return [list(itertools.chain(*ids[start::3]))[:120] for start in range(3)]


CASE = EngineCase(
    name="vllm",
    make=make,
    prompts=_prompts(),
    unsure_prompt=list(range(20, 60)),  # no text: stock vLLM 0.27 answers the others alike with eight seeds
    long_tokens=400,
    honours=HONOURS,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check) -> None:
    await run_check(check, CASE)


@pytest.fixture
async def engine() -> AsyncIterator[ProcessEngine]:
    made = make()
    assert isinstance(made, ProcessEngine)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def answer(engine: Engine, token_ids: list[int], **fields: Any) -> list[int]:
    fields = {"sampling": SamplingParams(temperature=0.0), "max_tokens": 8, **fields}
    ids: list[int] = []
    async with asyncio.timeout(30), aclosing(engine.generate(TokenRequest(id="t", token_ids=token_ids, **fields))) as s:
        async for delta in s:
            ids += delta.token_ids
    return ids


async def is_right(engine: Engine) -> bool:
    known = KNOWN["cases"][0]
    stop_ids = tuple(KNOWN["stop_token_ids"])
    ids = await answer(engine, known["prompt_ids"], max_tokens=len(known["greedy_ids"]) + 1, stop_token_ids=stop_ids)
    return ids == [token for token in known["greedy_ids"] if token not in stop_ids]


async def test_known_answers_of_the_demo_model(engine: ProcessEngine) -> None:
    stop_ids = tuple(KNOWN["stop_token_ids"])
    answers = await asyncio.gather(
        *[
            answer(engine, c["prompt_ids"], max_tokens=len(c["greedy_ids"]) + 1, stop_token_ids=stop_ids)
            for c in KNOWN["cases"]
        ]
    )
    for known, ids in zip(KNOWN["cases"], answers, strict=True):
        assert ids == [token for token in known["greedy_ids"] if token not in stop_ids], known


HOT = {"temperature": 1.0, "seed": 1}
BAD: dict[str, dict[str, Any]] = {
    "an empty prompt": {"token_ids": []},
    "a prompt that fills the context": {"token_ids": [5] * 1024},
    "a prompt longer than the context": {"token_ids": [5] * 3000},
    "a token id too large": {"token_ids": [5, 999_999]},
    "a negative token id": {"token_ids": [5, -5]},
    "temperature 500": {"sampling": SamplingParams(temperature=500.0)},
    "temperature -1": {"sampling": SamplingParams(temperature=-1.0)},
    "top_p 7": {"sampling": SamplingParams(top_p=7.0, **HOT)},
    "top_k -9": {"sampling": SamplingParams(top_k=-9, **HOT)},
    "min_p 3": {"sampling": SamplingParams(min_p=3.0, **HOT)},
    "presence_penalty 99": {"sampling": SamplingParams(presence_penalty=99.0)},
    "repetition_penalty 0": {"sampling": SamplingParams(repetition_penalty=0.0)},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens -3": {"max_tokens": -3},
    "min_tokens above max_tokens": {"max_tokens": 2, "min_tokens": 9},
    "logprobs 5000": {"sampling": SamplingParams(logprobs=5000)},
    "logprobs -2": {"sampling": SamplingParams(logprobs=-2)},
    "logit_bias out of the vocabulary": {"sampling": SamplingParams(logit_bias={5000: 1.0})},
    "a stop id out of the vocabulary": {"stop_token_ids": (5000,), "min_tokens": 2},
    "a negative stop id": {"stop_token_ids": (-1,), "min_tokens": 2},
    "bad words out of the vocabulary": {"sampling": SamplingParams(bad_words_ids=((5000,),))},
    "an empty bad word": {"sampling": SamplingParams(bad_words_ids=((),))},
    "a broken grammar": {"sampling": SamplingParams(guided=GuidedDecoding(grammar="root ::= (((("))},
    "a broken regex": {"sampling": SamplingParams(guided=GuidedDecoding(regex="(((["))},
    "an empty choice": {"sampling": SamplingParams(guided=GuidedDecoding(choice=()))},
    "an unknown adapter": {"adapter": "nobody"},
    "a seed of 80 bits": {"sampling": SamplingParams(temperature=1.0, seed=2**80)},
}


async def test_every_bad_request_is_refused_by_itself(engine: ProcessEngine) -> None:
    pid = engine.pid
    served = []
    for name, fields in BAD.items():
        try:
            await answer(engine, **{"token_ids": [5, 6, 7], **fields})
        except LlmrunError as error:
            assert not isinstance(error, EngineDied), name
            assert str(error), name
        else:
            served.append(name)
        assert await is_right(engine), name
    assert engine.pid == pid and engine.num_restarts == 0
    assert not served


async def test_raw_bytes_that_are_no_request_do_not_deafen_it(engine: ProcessEngine) -> None:
    """The worker sees to it even if the launcher had a bug: an answer, or a death that is seen, never silence."""
    link: Any = engine._connection.link  # type: ignore[union-attr]
    for kind, body in ((b"\x00", b"\xc1\xc1garbage"), (b"\x09", b"\x90"), (b"\x03", b"\x91\x01")):
        with contextlib.suppress(EngineError):
            link = engine._connection.link  # type: ignore[union-attr]
            link._send(kind, body)
            await asyncio.sleep(1.0)
        async with asyncio.timeout(60):
            assert await is_right(engine)


async def test_five_thousand_fuzzed_requests(engine: ProcessEngine) -> None:
    dice = random.Random(4)
    pid = engine.pid
    num_served = num_refused = 0
    gate = asyncio.Semaphore(48)

    async def one() -> None:
        nonlocal num_served, num_refused
        async with gate:
            try:
                await answer(engine, **_fuzzed(dice))
                num_served += 1
            except RequestError:
                num_refused += 1

    await asyncio.gather(*[one() for _ in range(5000)])
    assert await is_right(engine)
    assert engine.pid == pid and engine.num_restarts == 0
    assert num_served > 300 and num_refused > 300


def _fuzzed(dice: random.Random) -> dict[str, Any]:
    """Each field is neutral, odd or wrong."""
    sampling: dict[str, Any] = {}
    choices: dict[str, list[Any]] = {
        "temperature": [0.0, 1.0, 2.0, -1.0, 1e9, float("inf"), float("nan")],
        "top_k": [0, 1, 50, -7, 10**6],
        "top_p": [1.0, 0.5, 0.0, 1.5, float("nan")],
        "min_p": [0.0, 0.1, 2.0],
        "repetition_penalty": [1.0, 1.2, 0.0, -2.0],
        "presence_penalty": [0.0, 1.0, 9.0],
        "frequency_penalty": [0.0, -1.0, -9.0],
        "seed": [None, 0, -1, 2**63 - 1, 2**80],
        "logit_bias": [None, {5: 1.0}, {-1: 1.0}, {10**6: 1.0}, {5: 1e30}],
        "logprobs": [None, 0, 3, 21, -3, 10**6],
        "bad_words_ids": [(), ((5,),), ((5, 6),), ((),), ((10**6,),)],
    }
    for name in dice.sample(sorted(choices), dice.randint(0, 3)):
        sampling[name] = dice.choice(choices[name])
    length = dice.choice([1, 5, 40, 40, 40, 0, 1023, 1024, 2000])
    ids = [dice.randrange(3, 1000) for _ in range(length)]
    if ids and dice.random() < 0.15:
        ids[dice.randrange(len(ids))] = dice.choice([-1, 1024, 10**9, 2**40])
    return {
        "token_ids": ids,
        "sampling": SamplingParams(**sampling),
        "max_tokens": dice.choice([1, 2, 3, 3, 3, 0, -1, 10**9 if length == 1023 else 4]),
        "min_tokens": dice.choice([0, 0, 0, 1, 2, -1, 10**6]),
        "stop_token_ids": dice.choice([(), (2,), (0, 2), (-4,), (10**7,)]),
    }


@pytest.mark.parametrize("ranks", [1, 2])
async def test_a_seeded_prompt_that_is_read_in_pieces_answers_as_one_that_is_not(ranks: int) -> None:
    """0.32 on the CPU dies of it by itself."""
    prompt = KNOWN["cases"][0]["prompt_ids"] * 20
    hot = SamplingParams(temperature=1.0, seed=7)
    answers = []
    for step in (64, 2048):
        engine = make(max_running=8, max_batched_tokens=step, dtype="float32", tensor_parallel_size=ranks)
        try:
            await engine.start()
            answers.append(await answer(engine, prompt[:500], sampling=hot))
            assert await is_right(engine)
        finally:
            await engine.close()
    assert answers[0] == answers[1]


async def test_structured_output_and_logprobs(engine: ProcessEngine) -> None:
    prompt = KNOWN["cases"][0]["prompt_ids"]
    for guided in (
        GuidedDecoding(regex="[0-9]{3}"),
        GuidedDecoding(choice=("yes", "no")),
        GuidedDecoding(json_object=True),
        GuidedDecoding(json_schema={"type": "object", "properties": {"a": {"type": "integer"}}}),
        GuidedDecoding(grammar='root ::= "a" | "b"'),
    ):
        sampling = SamplingParams(temperature=0.0, guided=guided)
        assert await answer(engine, prompt, sampling=sampling, max_tokens=8, stop_token_ids=(0, 2))
    request = TokenRequest(id="l", token_ids=prompt, max_tokens=5, sampling=SamplingParams(temperature=0.0, logprobs=3))
    async with aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            assert delta.logprobs is not None
            for token_id, row in zip(delta.token_ids, delta.logprobs, strict=True):
                assert row.token_id == token_id == row.top[0][0]
                assert len(row.top) == 3 and row.logprob <= 0


async def test_a_killed_core_ends_every_stream_within_a_second_and_starts_again(engine: ProcessEngine) -> None:
    async def stream() -> float:
        with pytest.raises(EngineDied):
            await answer(engine, [5] * 20, max_tokens=900)
        return time.monotonic()

    tasks = [asyncio.create_task(stream()) for _ in range(32)]
    await asyncio.sleep(0.5)
    assert engine.pid is not None
    group = [process.pid for process in psutil.Process(engine.pid).children(recursive=True)]
    killed_at = time.monotonic()
    os.kill(engine.pid, signal.SIGKILL)
    ends = await asyncio.gather(*tasks)
    assert max(ends) - killed_at < 1.0
    assert await is_right(engine)
    assert engine.num_restarts == 1
    assert not [pid for pid in group if psutil.pid_exists(pid)]


_LAUNCHER = """
import asyncio, sys
from tests.runner.engines.vllm.test_real import make
async def main():
    engine = make()
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_nothing_is_left_five_seconds_after_the_launcher_is_killed() -> None:
    env = {**os.environ, "LLMRUN_VLLM_PYTHON": str(PYTHON)}
    launcher = subprocess.Popen([sys.executable, "-c", _LAUNCHER], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        family = [pid, *(process.pid for process in psutil.Process(pid).children(recursive=True))]
        assert len(family) > 1
    finally:
        launcher.kill()
        launcher.communicate()
    deadline = time.monotonic() + 5
    while any(psutil.pid_exists(one) for one in family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [one for one in family if psutil.pid_exists(one)]
