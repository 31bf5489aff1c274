"""The real SGLang on the CPU (make test-sglang): conformance, known answers, what a client may send.

Uses the Python that `llmrun engines install sglang --cpu` made, or LLMRUN_SGLANG_PYTHON. A start takes half a minute,
so the checks share engines (sharing.py).
"""

from __future__ import annotations

import asyncio
import math
import random
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from runner.engines.process import ProcessEngine
from runner.errors import EngineDied, LlmrunError, RequestError
from runner.types import EmbedRequest, GuidedDecoding, SamplingParams
from tests.conformance import Check, EngineCase
from tests.runner.engines.sglang.real import KNOWN, PYTHON, answer, deltas_of, is_right, make, prompts
from tests.runner.engines.sglang.sharing import LIMITED, SHARED, Engines

HONOURS = frozenset({"stop", "min_tokens", "seed", "max_running"})
CASE = EngineCase(name="sglang", make=make, prompts=prompts(), long_tokens=400, honours=HONOURS)
pytestmark = [
    pytest.mark.sglang,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PYTHON is None, reason="no sglang: llmrun engines install sglang --cpu"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines() -> AsyncIterator[Engines]:
    made = Engines(make)
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(engines: Engines) -> ProcessEngine:
    return await engines.get()


async def test_known_answers_of_the_demo_model(engine: ProcessEngine) -> None:
    right = await asyncio.gather(*[is_right(engine, known) for known in KNOWN["cases"]])
    assert all(right)


HOT = {"temperature": 1.0, "seed": 1}
BAD: dict[str, dict[str, Any]] = {
    "an empty prompt": {"token_ids": []},
    "a prompt that fills the context": {"token_ids": [5] * 1024},
    "a prompt longer than the context": {"token_ids": [5] * 3000},
    "a prompt that SGLang itself finds too long": {"token_ids": [5] * 1020, "max_tokens": 1},
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
    "min_tokens above max_tokens": {"max_tokens": 2, "min_tokens": 9},
    "logprobs 5000": {"sampling": SamplingParams(logprobs=5000)},
    "logit_bias out of the vocabulary": {"sampling": SamplingParams(logit_bias={5000: 1.0})},
    "a stop id out of the vocabulary": {"stop_token_ids": (5000,), "min_tokens": 2},
    "bad words out of the vocabulary": {"sampling": SamplingParams(bad_words_ids=((5000,),))},
    "an empty bad word": {"sampling": SamplingParams(bad_words_ids=((),))},
    "a broken grammar": {"sampling": SamplingParams(guided=GuidedDecoding(grammar="root ::= (((("))},
    "a broken regex": {"sampling": SamplingParams(guided=GuidedDecoding(regex="(((["))},
    "an empty choice": {"sampling": SamplingParams(guided=GuidedDecoding(choice=()))},
    "an unknown adapter": {"adapter": "nobody"},
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


async def test_three_thousand_fuzzed_requests(engine: ProcessEngine) -> None:
    dice = random.Random(4)
    pid = engine.pid
    num_served = num_refused = 0
    gate = asyncio.Semaphore(48)

    async def one() -> None:
        nonlocal num_served, num_refused
        async with gate:
            try:
                await answer(engine, **fuzzed(dice))
                num_served += 1
            except RequestError:
                num_refused += 1

    await asyncio.gather(*[one() for _ in range(3000)])
    assert await is_right(engine)
    assert engine.pid == pid and engine.num_restarts == 0
    assert num_served > 600 and num_refused > 600


def fuzzed(dice: random.Random) -> dict[str, Any]:
    """Each field is neutral, odd or wrong."""
    choices: dict[str, list[Any]] = {
        "temperature": [0.0, 1.0, 2.0, 1e-9, -1.0, 1e9, float("inf"), float("nan")],
        "top_k": [0, 1, 50, -7, 10**6],
        "top_p": [1.0, 0.5, 0.0, 1.5, float("nan")],
        "min_p": [0.0, 0.1, 1.0, 2.0],
        "typical_p": [1.0, 0.3, 0.0],
        "repetition_penalty": [1.0, 1.2, 0.0, -2.0],
        "presence_penalty": [0.0, 1.0, 9.0],
        "frequency_penalty": [0.0, -1.0, -9.0],
        "seed": [None, 0, -1, 2**63 - 1, 2**80],
        "logit_bias": [None, {5: 1.0}, {-1: 1.0}, {10**6: 1.0}, {5: 1e30}, {5: float("-inf")}],
        "logprobs": [None, 0, 3, 21, -3, 10**6],
        "bad_words_ids": [(), ((5,),), ((5, 6),), ((),), ((10**6,),)],
        "guided": [None, GuidedDecoding(regex="[a-z]*"), GuidedDecoding(regex="((("), GuidedDecoding(choice=("no",))],
    }
    sampling = {name: dice.choice(choices[name]) for name in dice.sample(sorted(choices), dice.randint(0, 3))}
    length = dice.choice([1, 5, 9, *[40] * 6, 1017, 1018, 2000 if dice.random() < 0.3 else 80])
    ids = [dice.randrange(3, 1000) for _ in range(length)]
    if ids and dice.random() < 0.15:
        ids[dice.randrange(len(ids))] = dice.choice([-1, 1024, 10**9, 2**40])
    return {
        "token_ids": ids,
        "sampling": SamplingParams(**sampling),
        "max_tokens": dice.choice([1, 2, 3, 3, 3, 4, 4, 4, 0, 10**9]),
        "min_tokens": dice.choice([0, 0, 0, 0, 0, 1, 1, 2, -1]),
        "stop_token_ids": dice.choice([(), (2,), (2,), (0, 2), (0, 2), (7, 8), (10**7,)]),
    }


async def test_every_field_is_honoured(engine: ProcessEngine) -> None:
    prompt = KNOWN["cases"][0]["prompt_ids"]
    free = await answer(engine, prompt)

    async def ask(**sampling: Any) -> list[int]:
        return await answer(engine, prompt, sampling=SamplingParams(**{"temperature": 0.0, **sampling}))

    assert await ask(logit_bias={300: 100.0}) == [300] * 8
    assert free[0] not in await ask(bad_words_ids=((free[0],),))
    assert await ask(temperature=5.0, seed=3) == await ask(temperature=5.0, seed=3)
    assert await ask(temperature=5.0, top_k=1) == await ask(temperature=5.0, top_p=0.0) == free
    assert await ask(temperature=1.0, min_p=1.0) == free
    assert await ask(temperature=1.0, typical_p=1e-6, seed=1) == await ask(temperature=1.0, typical_p=1e-6, seed=2)
    assert await ask(logit_bias={300: 100.0}, presence_penalty=2.0, frequency_penalty=2.0) == [300] * 8
    assert len(set(await ask(logit_bias=dict.fromkeys(range(300, 320), 50.0), frequency_penalty=2.0))) > 4
    assert len(set(await ask(logit_bias=dict.fromkeys(range(300, 320), 50.0), repetition_penalty=2.0))) > 4


async def test_structured_output(engine: ProcessEngine) -> None:
    prompt = KNOWN["cases"][0]["prompt_ids"]
    for guided in (
        GuidedDecoding(regex="[0-9]{3}"),
        GuidedDecoding(choice=("yes", "no")),
        GuidedDecoding(json_object=True),
        GuidedDecoding(json_schema={"type": "object", "properties": {"a": {"type": "integer"}}}),
        GuidedDecoding(grammar='root ::= "a" | "b"'),
    ):
        sampling = SamplingParams(temperature=0.0, guided=guided)
        assert await answer(engine, prompt, sampling=sampling, stop_token_ids=(0, 2))
    three = SamplingParams(temperature=0.0, guided=GuidedDecoding(regex="[0-9]{3}"))
    deltas = await deltas_of(engine, prompt, sampling=three)  # also where end tokens are ignored
    assert deltas[-1].finish == "stop"


async def test_logprobs_and_cached_tokens(engine: ProcessEngine) -> None:
    prompt = prompts()[0]
    cold, warm = [
        await deltas_of(engine, prompt, sampling=SamplingParams(temperature=0.0, logprobs=3)) for _ in range(2)
    ]
    assert [row for delta in cold for row in delta.logprobs or ()]
    for delta in warm:
        assert delta.logprobs is not None
        for token_id, row in zip(delta.token_ids, delta.logprobs, strict=True):
            assert row.token_id == token_id == row.top[0][0]
            assert len(row.top) == 3 and row.logprob <= 0
    assert sum(delta.cached_tokens or 0 for delta in warm) >= len(prompt) - 1


async def test_embeddings() -> None:
    model = make(extra={"is_embedding": True})
    try:
        info = await model.start()
        assert info.capabilities == ("embed",)
        result = await model.embed(EmbedRequest(id="e", inputs=[[5, 6, 7], [8, 9], [5, 6, 7]]))
    finally:
        await model.close()
    first, other, again = (struct.unpack(f"<{len(vector) // 4}f", vector) for vector in result.vectors)
    assert result.prompt_tokens == 8
    assert math.hypot(*first) == pytest.approx(1.0, abs=1e-5)
    same, different = [sum(a * b for a, b in zip(first, row, strict=True)) for row in (again, other)]
    assert same > 0.9995 > 0.999 > different  # it is no embedding model: all its vectors are close


@pytest.mark.parametrize("check", LIMITED + SHARED, ids=lambda check: check.__name__)
async def test_conformance(check: Check, engines: Engines) -> None:
    """Last, since it ends with a check that closes the engine."""
    await engines.run(check, CASE)
