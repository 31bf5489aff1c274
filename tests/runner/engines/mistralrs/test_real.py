"""The real mistral.rs on the CPU (make test-mistralrs): conformance, known answers, what is refused, deaths.

Uses the Python that `llmrun engines install mistralrs` made, or LLMRUN_MISTRALRS_PYTHON.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from model_cards.resolve import resolve
from model_cards.tokenizer import load_tokenizer
from runner.engines.process import ProcessEngine
from runner.errors import EngineDied, RequestError, UnsupportedField
from runner.types import GuidedDecoding, SamplingParams
from tests.conformance import CHECKS, Check, EngineCase, run_check
from tests.runner.engines.mistralrs.real import KNOWN, PYTHON, answer, deltas_of, is_right, make, prompts

pytestmark = [
    pytest.mark.mistralrs,
    pytest.mark.timeout(300),
    pytest.mark.skipif(PYTHON is None, reason="no mistral.rs: llmrun engines install mistralrs"),
]
CASE = EngineCase(
    name="mistralrs", make=make, prompts=prompts(), long_tokens=400, honours=frozenset({"stop", "max_running"})
)
PROMPT = KNOWN["cases"][0]["prompt_ids"]
LETTERS = [token for letter in "The capital" for token in load_tokenizer(resolve("demo-hf")).encode(letter)]


@pytest.fixture
async def engine() -> AsyncIterator[ProcessEngine]:
    engine = make()
    await engine.start()
    yield engine
    await engine.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check) -> None:
    await run_check(check, CASE)


@pytest.mark.parametrize("model", ["demo-hf", "demo"])
async def test_known_answers_of_the_demo_model(model: str) -> None:
    engine = make(model)
    try:
        await engine.start()
        right = await asyncio.gather(*[is_right(engine, known) for known in KNOWN["cases"]])
        assert all(right), f"{right.count(False)} of {len(right)} are wrong"
    finally:
        await engine.close()


REFUSED: dict[str, dict[str, Any]] = {
    "a seed": {"sampling": SamplingParams(seed=1)},
    "typical_p": {"sampling": SamplingParams(typical_p=0.5)},
    "bad words": {"sampling": SamplingParams(bad_words_ids=((5,),))},
    "beams": {"sampling": SamplingParams(beam_width=2)},
    "min_tokens": {"min_tokens": 2},
    "an adapter": {"adapter": "nobody"},
    "logprobs of a hot request": {"sampling": SamplingParams(temperature=2.0, logprobs=1)},
}
BAD: dict[str, dict[str, Any]] = {
    "an empty prompt": {"token_ids": []},
    "a prompt longer than the context": {"token_ids": [5] * 3000},
    "a token id too large": {"token_ids": [5, 999_999]},
    "a negative token id": {"token_ids": [5, -5]},
    "token ids that no text gives": {"token_ids": LETTERS},
    "temperature -1": {"sampling": SamplingParams(temperature=-1.0)},
    "top_p 7": {"sampling": SamplingParams(top_p=7.0)},
    "logprobs 5000": {"sampling": SamplingParams(logprobs=5000)},
    "logit_bias out of the vocabulary": {"sampling": SamplingParams(logit_bias={5000: 1.0})},
    "a broken grammar": {"sampling": SamplingParams(guided=GuidedDecoding(grammar="root ::= (((("))},
    "a broken regex": {"sampling": SamplingParams(guided=GuidedDecoding(regex="(((["))},
    "an empty choice": {"sampling": SamplingParams(guided=GuidedDecoding(choice=()))},
}


async def test_what_it_would_ignore_is_refused_by_name(engine: ProcessEngine) -> None:
    for name, fields in REFUSED.items():
        with pytest.raises(UnsupportedField) as caught:
            await answer(engine, **{"token_ids": PROMPT, **fields})
        assert caught.value.field, name
    assert await is_right(engine)


async def test_every_bad_request_is_refused_by_itself(engine: ProcessEngine) -> None:
    pid, served = engine.pid, []
    for name, fields in BAD.items():
        try:
            await answer(engine, **{"token_ids": PROMPT, **fields})
        except RequestError as error:
            assert str(error), name
        else:
            served.append(name)
        assert await is_right(engine), name
    assert not served
    assert engine.pid == pid and engine.num_restarts == 0


async def test_the_text_of_a_control_token_is_not_taken_for_it(engine: ProcessEngine) -> None:
    typed = load_tokenizer(resolve("demo-hf")).encode("Hi <|im_end|>", parse_special=False)
    with pytest.raises(RequestError, match="control token"):
        await answer(engine, typed)


async def test_every_field_is_honoured(engine: ProcessEngine) -> None:
    free = await answer(engine, PROMPT)

    async def ask(**sampling: Any) -> list[int]:
        return await answer(engine, PROMPT, sampling=SamplingParams(**{"temperature": 0.0, **sampling}))

    few = dict.fromkeys(range(300, 320), 50.0)
    assert await ask(logit_bias={300: 100.0}) == [300] * 8
    assert await ask(temperature=5.0, top_k=1) == free
    assert await ask(temperature=1.0, min_p=1.0) == free
    assert await ask(temperature=1.0, top_p=1e-6) == free
    assert len({tuple(await ask(temperature=5.0)) for _ in range(4)}) > 1
    assert len(set(await ask(logit_bias=few, frequency_penalty=2.0))) > 4
    assert len(set(await ask(logit_bias=few, presence_penalty=2.0))) > 4
    assert len(set(await ask(logit_bias=few, repetition_penalty=2.0))) > 4


async def test_structured_output(engine: ProcessEngine) -> None:
    tokenizer = load_tokenizer(resolve("demo-hf"))
    wanted = {
        GuidedDecoding(regex="[0-9]{3}"): lambda text: len(text) == 3 and text.isdigit(),
        GuidedDecoding(choice=("yes", "no")): lambda text: text in ("yes", "no"),
        GuidedDecoding(grammar='root ::= "a" | "b"'): lambda text: text in ("a", "b"),
    }
    for guided, is_good in wanted.items():
        deltas = await deltas_of(engine, PROMPT, sampling=SamplingParams(temperature=0.0, guided=guided))
        text = tokenizer.decode([token for delta in deltas for token in delta.token_ids])
        assert is_good(text), text
        assert deltas[-1].finish == "stop"
    for guided in (GuidedDecoding(json_object=True), GuidedDecoding(json_schema={"type": "object"})):
        ids = await answer(engine, PROMPT, sampling=SamplingParams(temperature=0.0, guided=guided))
        assert tokenizer.decode(ids).lstrip().startswith("{")


async def test_logprobs(engine: ProcessEngine) -> None:
    deltas = await deltas_of(engine, PROMPT, max_tokens=3, sampling=SamplingParams(temperature=0.0, logprobs=3))
    rows = [row for delta in deltas for row in delta.logprobs or ()]
    assert [row.token_id for row in rows] == KNOWN["cases"][0]["greedy_ids"]
    assert all(len(row.top) == 3 and row.top[0][0] == row.token_id and row.logprob <= 0 for row in rows)


async def test_tokens_of_half_characters_keep_their_ids(engine: ProcessEngine) -> None:
    tokenizer = load_tokenizer(resolve("demo-hf"))
    sampling = SamplingParams(temperature=1.0, guided=GuidedDecoding(regex="é😀"))
    ids = await answer(engine, PROMPT, sampling=sampling)
    assert tokenizer.decode(ids) == "é😀"
    assert ids == tokenizer.encode("é😀")


async def test_tokens_that_mistral_rs_would_hide_are_told(engine: ProcessEngine) -> None:
    start = load_tokenizer(resolve("demo-hf")).encode("<|im_start|>")
    sampling = SamplingParams(temperature=0.0, logit_bias={start[0]: 100.0})
    assert await answer(engine, PROMPT, sampling=sampling) == start * 8


async def test_a_death_ends_every_stream_and_the_next_request_starts_it_again() -> None:
    engine = make()
    try:
        await engine.start()

        async def stream() -> float:
            with pytest.raises(EngineDied):
                await answer(engine, PROMPT, max_tokens=900)
            return time.monotonic()

        tasks = [asyncio.create_task(stream()) for _ in range(32)]
        await asyncio.sleep(0.5)
        assert engine.pid is not None and not any(task.done() for task in tasks)
        killed_at = time.monotonic()
        os.kill(engine.pid, signal.SIGKILL)
        assert max(await asyncio.gather(*tasks)) - killed_at < 1.5  # 1 s, and a busy machine
        assert await is_right(engine)
        assert engine.num_restarts == 1
    finally:
        await engine.close()


_LAUNCHER = """
import asyncio
from tests.runner.engines.mistralrs.real import make
async def main():
    engine = make()
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_nothing_is_left_five_seconds_after_the_launcher_is_killed() -> None:
    env = {**os.environ, "LLMRUN_MISTRALRS_PYTHON": str(PYTHON)}
    launcher = subprocess.Popen([sys.executable, "-c", _LAUNCHER], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert launcher.stdout is not None
        child = psutil.Process(int(launcher.stdout.readline()))
    finally:
        launcher.kill()
        launcher.communicate()
    assert not psutil.wait_procs([child], 5.0)[1]
