"""out=trtllm on a stand-in for TensorRT-LLM, in a real child process of its own environment.

The stand-in has the real one's parameters (fake/tensorrt_llm/signatures.json says where they come from) over a toy
model; no real engine was run.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.engines.process import ProcessEngine
from runner.errors import EngineDied, EngineStartFailed, RequestError, UnsupportedField
from runner.types import GuidedDecoding, SamplingParams, TokenDelta, TokenRequest
from tests.conformance import CHECKS, Check, EngineCase, run_check
from tests.runner.engines.trtllm.environments import DEMO, make, make_engine_folder, make_environment

PROMPTS = [list(range(start, start + 60)) for start in (10, 90, 200)]
ENGINE = frozenset({"stop", "min_tokens", "seed", "max_running"})
FOLDER = frozenset({"stop", "max_running"})


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_environment(tmp_path_factory.mktemp("trtllm") / "env")


@pytest.fixture
async def engine(tmp_path: Path, python: str) -> AsyncIterator[ProcessEngine]:
    engine = make(make_engine_folder(tmp_path / "engine"), python)
    await engine.start()
    yield engine
    await engine.close()


async def deltas_of(engine: ProcessEngine, **fields: Any) -> list[TokenDelta]:
    fields = {"token_ids": PROMPTS[0], "sampling": SamplingParams(temperature=0.0), "max_tokens": 8, **fields}
    deltas = []
    async with aclosing(engine.generate(TokenRequest(id="t", **fields))) as stream:
        async for delta in stream:
            deltas.append(delta)
    return deltas


async def answer(engine: ProcessEngine, **fields: Any) -> list[int]:
    return [token for delta in await deltas_of(engine, **fields) for token in delta.token_ids]


@pytest.mark.parametrize("kind", ["engine", "folder"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, kind: str, tmp_path: Path, python: str) -> None:
    model = make_engine_folder(tmp_path / "engine") if kind == "engine" else DEMO
    honours = ENGINE if kind == "engine" else FOLDER

    def made(**limits: Any) -> ProcessEngine:
        return make(model, python, **limits)

    case = EngineCase(name=kind, make=made, prompts=PROMPTS, long_tokens=400, honours=honours)
    await run_check(check, case)


@pytest.mark.parametrize("version", ["0.12.0", "0.20.0", "1.0.0", "1.2.1"])
async def test_each_release_gets_its_own_names_and_class(version: str, tmp_path: Path) -> None:
    engine = make(make_engine_folder(tmp_path / "engine", version), make_environment(tmp_path / "env", version))
    try:
        info = await engine.start()
        assert info.version == version
        hot = SamplingParams(temperature=2.0, seed=5)
        assert await answer(engine, sampling=hot) == await answer(engine, sampling=hot)
        stop = (await answer(engine))[3]
        deltas = await deltas_of(engine, stop_token_ids=(stop,))
        assert (deltas[-1].finish, deltas[-1].stop_token_id) == ("stop", stop)
    finally:
        await engine.close()


async def test_every_field_is_honoured(engine: ProcessEngine) -> None:
    free = await answer(engine)

    async def ask(**sampling: Any) -> list[int]:
        return await answer(engine, sampling=SamplingParams(**{"temperature": 0.0, **sampling}))

    few = dict.fromkeys(range(300, 320), 50.0)
    assert await ask(logit_bias={300: 100.0}) == [300] * 8
    assert free[0] not in await ask(bad_words_ids=((free[0],),))
    assert await ask(temperature=5.0, top_k=1) == await ask(temperature=5.0, top_p=1e-6) == free
    assert await ask(temperature=1.0, min_p=1.0) == free
    assert await ask(temperature=5.0, seed=1) != await ask(temperature=5.0, seed=2)
    assert len({tuple(await ask(temperature=5.0)) for _ in range(4)}) > 1  # chance, not the runtime's seed 0
    assert len(set(await ask(logit_bias=few, frequency_penalty=20.0))) == 8
    assert len(set(await ask(logit_bias=few, presence_penalty=20.0))) == 8
    assert len(set(await ask(logit_bias=few, repetition_penalty=5.0))) == 8


async def test_logprobs_are_of_the_tokens_that_are_given(engine: ProcessEngine) -> None:
    deltas = await deltas_of(engine, sampling=SamplingParams(temperature=0.0, logprobs=3))
    for delta in deltas:
        assert delta.logprobs is not None
        for token, row in zip(delta.token_ids, delta.logprobs, strict=True):
            assert row.token_id == token == row.top[0][0]
            assert len(row.top) == 3 and row.logprob < 0


async def test_a_grammar_reaches_the_engine_and_what_it_lacks_is_refused(engine: ProcessEngine, python: str) -> None:
    guided = SamplingParams(temperature=0.0, guided=GuidedDecoding(choice=("yes", "no")))
    assert await answer(engine, sampling=guided)
    for fields in (
        {"sampling": SamplingParams(typical_p=0.5)},
        {"sampling": SamplingParams(beam_width=2)},
        {"sampling": SamplingParams(bad_words_ids=((5, 6),))},
        {"min_tokens": 2, "stop_token_ids": (5, 6)},
        {"adapter": "nobody"},
    ):
        with pytest.raises(RequestError):
            await answer(engine, **fields)
    folder = make(DEMO, python)
    try:
        info = await folder.start()
        assert "logprobs" in info.capabilities and "seed" not in info.capabilities
        with pytest.raises(UnsupportedField, match="seed"):
            await answer(folder, sampling=SamplingParams(seed=1))
    finally:
        await folder.close()


async def test_a_death_ends_every_stream_and_leaves_no_rank_behind(tmp_path: Path, python: str) -> None:
    engine = make(make_engine_folder(tmp_path / "engine", ranks=3), python)
    try:
        await engine.start()
        assert engine.pid is not None
        family = psutil.Process(engine.pid).children(recursive=True)
        assert sum("rank" in " ".join(one.cmdline()[-1:]) for one in family) == 2

        async def stream() -> None:
            with pytest.raises(EngineDied):
                await answer(engine, max_tokens=1900)

        tasks = [asyncio.create_task(stream()) for _ in range(32)]
        await asyncio.sleep(0.3)
        os.kill(engine.pid, signal.SIGKILL)
        async with asyncio.timeout(2):
            await asyncio.gather(*tasks)
        assert not psutil.wait_procs(family, 5.0)[1]
        assert len(await answer(engine)) == 8
        assert engine.num_restarts == 1
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"no_such_thing": 1}, "no_such_thing"),
        ({"stream_interval": 2}, "stream_interval"),  # PyTorch's only
        ({"kv_cache_config": {"no_such_thing": 1}}, "KvCacheConfig has no no_such_thing"),
        ({"kv_cache_config": {"dtype": "fp8"}}, "KvCacheConfig.dtype is not supported by the TensorRT backend"),
    ],
    ids=str,
)
async def test_an_argument_that_it_does_not_know_is_a_failed_start(
    extra: dict[str, Any], words: str, tmp_path: Path, python: str
) -> None:
    engine = make(make_engine_folder(tmp_path / "engine"), python, extra=extra)
    with pytest.raises(EngineStartFailed, match=words):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize(
    ("installed", "has_module", "built", "words"),
    [
        ("1.3.0rc22", False, "1.3.0rc22", "cannot run compiled engines"),
        ("1.2.1", True, "1.0.0", "built by TensorRT-LLM 1.0.0"),
        ("0.20.0", False, "0.16.0", "built by TensorRT-LLM 0.16.0"),
    ],
)
def test_an_engine_of_another_release_is_refused_before_the_start(
    installed: str, has_module: bool, built: str, words: str, tmp_path: Path
) -> None:
    python = make_environment(tmp_path / "env", installed, has_engine_module=has_module)
    with pytest.raises(EngineStartFailed, match=words) as caught:
        make(make_engine_folder(tmp_path / "engine", built), python)
    assert "llmrun" in caught.value.hint


def test_a_release_without_pytorch_runs_no_folders(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", "0.20.0")
    with pytest.raises(EngineStartFailed, match="compiled engines only") as caught:
        make(DEMO, python)
    assert "llmrun build-engine" in caught.value.hint
