"""The rules of an engine's streams (runner/engines/base.py), as checks that run against every engine.

An engine's test makes an `EngineCase` and parametrises over CHECKS:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_conformance(check): await run_check(check, case)

Each check gets a started engine of its own and leaves nothing behind; `honours` says which checks apply.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import msgspec
import pytest

from runner.engines.base import Engine
from runner.errors import EngineDied, EngineError, LlmrunError, UnsupportedField
from runner.types import EmbedRequest, EngineInfo, SamplingParams, TokenDelta, TokenRequest

BOUND_S = 20.0
"""Every wait has a bound: a hang is a failure, not a time-out of the test run."""
SLOT_S = 1.0
"""A cancelled request gives its slot back within this."""

_ids = itertools.count(1)


class EngineCase(msgspec.Struct, frozen=True, kw_only=True):
    """One engine under test."""

    name: str
    make: Callable[..., Engine]
    """make(max_running=None, max_queue=None) -> Engine, not started."""
    prompts: list[list[int]]
    """At least two, different, of plain text and of 30 tokens or more; answers of `long_tokens` must be possible."""
    unsure_prompt: list[int] | None = None
    """One whose next tokens differ by seed; None: the first of `prompts` does."""
    long_tokens: int = 200
    """Tokens of an answer that takes long enough (some tens of ms) to be cancelled in its middle."""
    honours: frozenset[str] = frozenset({"stop", "min_tokens", "max_running"})
    """Of: stop (stop ids), min_tokens, seed (sampling with seeds that differ), max_running (slots), max_queue."""


Check = Callable[[Engine, EngineInfo, EngineCase], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register."""
    CHECKS.append(function)
    return function


async def run_check(one: Check, case: EngineCase) -> None:
    """Start an engine, run one check, close the engine."""
    limits = getattr(one, "limits", {})
    missing = getattr(one, "needs", set()) - case.honours
    if missing:
        pytest.skip(f"{case.name} does not claim: {', '.join(sorted(missing))}")
    engine = case.make(**limits)
    try:
        async with asyncio.timeout(4 * BOUND_S):
            info = await engine.start()
            await one(engine, info, case)
    finally:
        await engine.close()


def needs(*names: str, **limits: int) -> Callable[[Check], Check]:
    """What a check wants the engine to honour, and the options it is made with."""

    def mark(function: Check) -> Check:
        function.needs = set(names)  # type: ignore[attr-defined]
        function.limits = limits  # type: ignore[attr-defined]
        return function

    return mark


def request(token_ids: list[int], *, max_tokens: int = 16, **fields: object) -> TokenRequest:
    """A greedy request unless `sampling` says else."""
    sampling = fields.pop("sampling", SamplingParams(temperature=0.0))
    return TokenRequest(
        id=f"check-{next(_ids)}",
        token_ids=token_ids,
        max_tokens=max_tokens,
        sampling=sampling,
        **fields,  # type: ignore[arg-type]
    )


async def collect(engine: Engine, one: TokenRequest) -> list[TokenDelta]:
    """All deltas of a stream, checked against the rules that hold for every stream."""
    deltas: list[TokenDelta] = []
    async with asyncio.timeout(BOUND_S):
        async with aclosing(engine.generate(one)) as stream:
            async for delta in stream:
                deltas.append(delta)
    assert deltas, "a stream ended without a delta"
    assert deltas[-1].finish is not None, "the last delta has no finish"
    assert all(delta.finish is None for delta in deltas[:-1]), "a finish before the last delta"
    assert not set(ids_of(deltas)) & set(one.stop_token_ids) or one.min_tokens, "a stop token is in token_ids"
    assert len(ids_of(deltas)) <= one.max_tokens
    for delta in deltas:
        assert delta.logprobs is None or len(delta.logprobs) == len(delta.token_ids)
    return deltas


def ids_of(deltas: list[TokenDelta]) -> list[int]:
    """The answer."""
    return [token_id for delta in deltas for token_id in delta.token_ids]


async def first_delta(engine: Engine, one: TokenRequest) -> None:
    """Open a stream, wait for its first delta, close it."""
    async with asyncio.timeout(BOUND_S):
        async with aclosing(engine.generate(one)) as stream:
            async for _ in stream:
                return


@check
async def info_is_told(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    assert info.name
    assert info.max_running >= 1
    await engine.health()
    assert all(isinstance(value, float) for value in (await engine.stats()).values())


@check
async def one_finish_and_it_is_last(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    for prompt in case.prompts:
        await collect(engine, request(prompt))


@check
async def max_tokens_is_met_exactly(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    for max_tokens in (1, 2, 7, 24):
        deltas = await collect(engine, request(case.prompts[0], max_tokens=max_tokens))
        assert len(ids_of(deltas)) == max_tokens
        assert deltas[-1].finish == "length"


@check
async def greedy_is_repeatable(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    first = await collect(engine, request(case.prompts[0], max_tokens=24))
    again = await collect(engine, request(case.prompts[0], max_tokens=24))
    assert ids_of(first) == ids_of(again)


@check
@needs("seed")
async def same_seed_same_ids(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    async def sample(seed: int) -> list[int]:
        sampling = SamplingParams(temperature=2.0, seed=seed)  # hot: the demo model is sure of itself
        prompt = case.unsure_prompt or case.prompts[0]
        return ids_of(await collect(engine, request(prompt, max_tokens=24, sampling=sampling)))

    await sample(7)  # fills the prefix cache: quantised kernels round by the number of rows, and hot sampling shows it
    assert await sample(7) == await sample(7)
    assert len({tuple(await sample(seed)) for seed in range(8)}) > 1


@check
@needs("stop")
async def stop_ids_end_a_stream(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    free = ids_of(await collect(engine, request(case.prompts[0], max_tokens=24)))
    stop_id = free[12]
    deltas = await collect(engine, request(case.prompts[0], max_tokens=24, stop_token_ids=(stop_id,)))
    assert ids_of(deltas) == free[: free.index(stop_id)]
    assert deltas[-1].finish == "stop"
    assert deltas[-1].stop_token_id == stop_id


@check
@needs("stop", "min_tokens")
async def min_tokens_masks_stop_ids(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    free = ids_of(await collect(engine, request(case.prompts[0], max_tokens=24)))
    stop_id = free[2]
    one = request(case.prompts[0], max_tokens=24, min_tokens=10, stop_token_ids=(stop_id,))
    answer = ids_of(await collect(engine, one))
    assert 10 <= len(answer) <= 24
    assert stop_id not in answer


@check
async def streams_are_independent(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    wanted = [ids_of(await collect(engine, request(prompt, max_tokens=20))) for prompt in case.prompts]
    many = [request(case.prompts[at % len(case.prompts)], max_tokens=20) for at in range(32)]
    answers = await asyncio.gather(*[collect(engine, one) for one in many])
    for at, deltas in enumerate(answers):
        assert ids_of(deltas) == wanted[at % len(wanted)], f"stream {at} got the ids of another"


@check
async def equal_ids_are_two_requests(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    twins = [msgspec.structs.replace(request(prompt, max_tokens=20), id="twin") for prompt in case.prompts[:2]]
    alone = [ids_of(await collect(engine, one)) for one in twins]
    together = await asyncio.gather(*[collect(engine, one) for one in twins])
    assert [ids_of(deltas) for deltas in together] == alone


@check
async def closing_early_leaves_others_alone(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    wanted = ids_of(await collect(engine, request(case.prompts[0], max_tokens=40)))
    survivor = asyncio.create_task(collect(engine, request(case.prompts[0], max_tokens=40)))
    await asyncio.gather(*[first_delta(engine, request(case.prompts[1], max_tokens=40)) for _ in range(8)])
    assert ids_of(await survivor) == wanted


@check
@needs("max_running", max_running=1)
async def closing_early_frees_the_slot(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    assert info.max_running == 1
    for _ in range(3):
        await first_delta(engine, request(case.prompts[0], max_tokens=case.long_tokens))
        waiting = request(case.prompts[1], max_tokens=1)
        async with asyncio.timeout(SLOT_S + 1.0):  # a second more: this machine may be busy
            await collect(engine, waiting)


@check
@needs("max_running", max_running=1)
async def more_than_fit_are_queued(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    answers = await asyncio.gather(*[collect(engine, request(case.prompts[0], max_tokens=4)) for _ in range(6)])
    assert all(len(ids_of(deltas)) == 4 for deltas in answers)


@check
async def cancelling_a_task_closes_its_stream(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    tasks = [
        asyncio.create_task(collect(engine, request(case.prompts[0], max_tokens=case.long_tokens))) for _ in range(8)
    ]
    await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=BOUND_S)
    await becomes_idle(engine)


@check
async def a_storm_of_cancels(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    dice = random.Random(1)

    async def vanish() -> None:
        task = asyncio.create_task(collect(engine, request(case.prompts[0], max_tokens=case.long_tokens)))
        await asyncio.sleep(dice.random() * 0.05)
        task.cancel()
        await asyncio.wait({task})

    wanted = ids_of(await collect(engine, request(case.prompts[1], max_tokens=8)))
    await asyncio.gather(*[vanish() for _ in range(60)])
    assert ids_of(await collect(engine, request(case.prompts[1], max_tokens=8))) == wanted
    await becomes_idle(engine)


async def becomes_idle(engine: Engine) -> None:
    """No request is left in the engine, soon."""
    async with asyncio.timeout(SLOT_S + 1.0):
        while True:
            stats = await engine.stats()
            if not stats.get("num_running") and not stats.get("num_waiting"):
                return
            await asyncio.sleep(0.02)


@check
async def a_stream_never_begun_costs_nothing(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    stream = engine.generate(request(case.prompts[0]))
    await stream.aclose()
    await becomes_idle(engine)


@check
async def embed_is_refused_or_works(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    ask = EmbedRequest(id="embed", inputs=[case.prompts[0][:8], case.prompts[1][:8]])
    if "embed" not in info.capabilities:
        with pytest.raises(UnsupportedField):
            await engine.embed(ask)
        return
    result = await engine.embed(ask)
    assert len(result.vectors) == 2
    assert result.prompt_tokens == 16


@check
async def what_is_too_long_is_refused_or_served(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    if not info.context_length or info.context_length > 100_000:
        pytest.skip("no limit that a test can reach")
    too_long = (case.prompts[0] * (info.context_length // len(case.prompts[0]) + 2))[: info.context_length + 8]
    try:
        await collect(engine, request(too_long, max_tokens=4))
    except LlmrunError as error:
        assert str(error)
    await collect(engine, request(case.prompts[0], max_tokens=4))  # others are fine


@check
async def close_is_safe_and_ends_streams(engine: Engine, info: EngineInfo, case: EngineCase) -> None:
    task = asyncio.create_task(collect(engine, request(case.prompts[0], max_tokens=case.long_tokens)))
    await asyncio.sleep(0.02)
    async with asyncio.timeout(BOUND_S):
        await engine.close()
        await engine.close()
    await asyncio.wait({task}, timeout=BOUND_S)
    assert task.done(), "a stream hangs after close"
    assert task.exception() is None or isinstance(task.exception(), EngineError)
    with pytest.raises(EngineDied):
        await engine.health()
