"""The child's side against a stand-in for sglang (fake/), in a real child process: fields, deaths."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.engines.process import ProcessEngine
from runner.errors import EngineDied, EngineStartFailed, RequestError
from runner.types import GuidedDecoding, SamplingParams, TokenDelta, TokenRequest
from tests.runner.engines.sglang.stand_in import make

PROMPT = [5, 6, 7]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="no torch")


@pytest.fixture
async def engine() -> AsyncIterator[ProcessEngine]:
    made = make()
    await made.start()
    yield made
    await made.close()


async def ask(engine: ProcessEngine, **fields: Any) -> list[TokenDelta]:
    sampling = SamplingParams(**{"temperature": 0.0, **fields.pop("sampling", {})})
    request = TokenRequest(id="t", **{"token_ids": PROMPT, "max_tokens": 8, "sampling": sampling, **fields})
    deltas: list[TokenDelta] = []
    async with asyncio.timeout(20), aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            deltas.append(delta)
    return deltas


def ids_of(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def test_fields_that_our_processor_honours(engine: ProcessEngine) -> None:
    free = ids_of(await ask(engine))
    assert free[0] not in ids_of(await ask(engine, sampling={"bad_words_ids": ((free[0],),)}))
    hot = {"temperature": 3.0, "seed": 4}
    assert ids_of(await ask(engine, sampling=hot)) == ids_of(await ask(engine, sampling=hot)) != free
    digits = await ask(engine, sampling={"guided": GuidedDecoding(regex="[0-9]{3}")})
    assert digits[-1].finish == "stop"  # complete, though no stop id was named
    logged = await ask(engine, sampling={"logprobs": 1})
    assert all(delta.logprobs and delta.logprobs[0].top for delta in logged)


async def test_a_stop_id_that_sglang_would_not_stop_at_is_aborted_there(engine: ProcessEngine) -> None:
    free = ids_of(await ask(engine, max_tokens=20))
    deltas = await ask(engine, max_tokens=900, stop_token_ids=(free[5],))
    assert ids_of(deltas) == free[: free.index(free[5])]
    assert deltas[-1].stop_token_id == free[5]
    assert (await engine.stats())["num_running"] == 0


async def test_a_bad_grammar_is_the_requests_fault(engine: ProcessEngine) -> None:
    with pytest.raises(RequestError, match=r"guided\.regex"):
        await ask(engine, sampling={"guided": GuidedDecoding(regex="(((")})
    assert await ask(engine)


async def test_a_number_that_no_frame_can_carry_is_the_requests_fault(engine: ProcessEngine) -> None:
    with pytest.raises(RequestError, match="too large"):
        await ask(engine, sampling={"temperature": 1.0, "seed": 2**80})
    assert await ask(engine)


async def test_an_engine_argument_that_is_unknown_is_a_failed_start() -> None:
    engine = make(extra={"tp_sice": 2})
    with pytest.raises(EngineStartFailed, match="no engine argument 'tp_sice'"):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize("victim", ["scheduler", "detokenizer", "engine"])
async def test_any_death_ends_every_stream_soon(engine: ProcessEngine, victim: str) -> None:
    async def stream() -> float:
        with pytest.raises(EngineDied):
            await ask(engine, max_tokens=900)
        return time.monotonic()

    tasks = [asyncio.create_task(stream()) for _ in range(8)]
    await asyncio.sleep(0.3)
    assert engine.pid is not None
    family = [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]
    workers = [process for process in family if "spawn_main" in " ".join(process.cmdline())]
    dying = {"scheduler": workers[0], "detokenizer": workers[1], "engine": family[0]}[victim]
    killed_at = time.monotonic()
    os.kill(dying.pid, signal.SIGKILL)
    assert max(await asyncio.gather(*tasks)) - killed_at < 5.0
    assert not psutil.wait_procs(family, 2.0)[1]
    assert await ask(engine)  # it was started again


async def test_a_scheduler_that_fails_by_itself_is_named() -> None:
    engine = make(extra={"crash": "sglang::scheduler"}, max_restarts=0)
    with pytest.raises((EngineStartFailed, EngineDied)) as caught:
        await engine.start()
        for _ in range(200):
            await ask(engine, max_tokens=50)
    assert "exited with code 70" in str(caught.value) and "hit an exception" in str(caught.value)
    await engine.close()


async def test_nothing_of_it_is_left_after_close() -> None:
    engine = make()
    await engine.start()
    assert engine.pid is not None and engine.socket_path is not None
    family = [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]
    await engine.close()
    assert not psutil.wait_procs(family, 2.0)[1]
    assert not Path(engine.socket_path).parent.exists()
