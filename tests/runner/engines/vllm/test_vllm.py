"""out=vllm against a peer that speaks EngineCore's protocol (core_peer.py); the real one is in test_real.py."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from model_cards.card import ModelCard
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.process import ProcessEngine
from runner.engines.vllm.connector import CoreSpawner
from runner.engines.vllm.settings import read_settings
from runner.errors import EngineDied, EngineFailed, EngineStartFailed, RequestError, UnsupportedField
from runner.types import EmbedRequest, SamplingParams, TokenDelta, TokenRequest
from tests.conformance import CHECKS, Check, EngineCase, run_check

PEER = (str(Path(__file__).with_name("core_peer.py")),)
CARD = ModelCard(name="m", source="m", kind="hf", path="/m", context_length=512)


def make(**options: Any) -> ProcessEngine:
    spec = EngineSpec(name="vllm", card=CARD, options=EngineOptions(**{"start_timeout_s": 20, **options}))
    return ProcessEngine(spec, "", connector=CoreSpawner(spec, read_settings(spec), sys.executable, PEER))


PROMPTS = [list(range(at, at + 40)) for at in (1, 200, 500)]
CASE = EngineCase(
    name="vllm-peer",
    make=make,
    prompts=PROMPTS,
    long_tokens=300,
    honours=frozenset({"stop", "min_tokens", "max_running", "max_queue"}),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check) -> None:
    if check.__name__ == "min_tokens_masks_stop_ids":
        pytest.skip("the peer counts up and cannot mask")
    await run_check(check, CASE)


async def collect(engine: ProcessEngine, token_ids: list[int], **fields: Any) -> list[TokenDelta]:
    request = TokenRequest(id="t", token_ids=token_ids, **{"max_tokens": 4, **fields})
    deltas = []
    async with asyncio.timeout(20), aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            deltas.append(delta)
    return deltas


def ids_of(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def test_fields_are_placed_by_the_names_that_the_worker_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("", "old"):
        monkeypatch.setenv("LLMRUN_PEER", mode)
        engine = make()
        try:
            await engine.start()
            deltas = await collect(engine, [1, 2, 3], sampling=SamplingParams(logprobs=1))
        finally:
            await engine.close()
        assert ids_of(deltas) == [4, 5, 6, 7]
        rows = [row for delta in deltas for row in delta.logprobs or []]
        assert [row.token_id for row in rows] == [4, 5, 6, 7]
        assert rows[0].logprob == -0.5 and rows[0].top == [(7, -1.5)]
        assert deltas[0].cached_tokens == 3


async def test_a_vllm_without_a_needed_field_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_PEER", "strange")
    engine = make()
    try:
        await engine.start()
        with pytest.raises(EngineFailed, match="has no field 'arrival_time'"):
            await collect(engine, [1])
    finally:
        await engine.close()


async def test_a_vllm_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_PEER", "ancient")
    engine = make()
    with pytest.raises(EngineStartFailed, match=r"vLLM 0\.9\.2 is too old: out=vllm speaks to 0\.17 to 0\.33"):
        await engine.start()
    await engine.close()


async def test_a_refusal_is_the_requests_own_and_says_why() -> None:
    engine = make()
    try:
        await engine.start()
        with pytest.raises(RequestError, match="vLLM refuses this request: length"):
            await collect(engine, [1] * 600)
        with pytest.raises(EngineFailed, match="gave this request up"):
            await collect(engine, [666])
        assert ids_of(await collect(engine, [1])) == [2, 3, 4, 5]
    finally:
        await engine.close()


async def test_embeddings_have_length_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_PEER", "pooling")
    engine = make()
    try:
        info = await engine.start()
        assert info.capabilities == ("embed",)
        result = await engine.embed(EmbedRequest(id="e", inputs=[[1, 2], [3]]))
    finally:
        await engine.close()
    assert result.prompt_tokens == 3
    assert [round(value, 3) for value in struct.unpack("<2f", result.vectors[0])] == [0.6, 0.8]


async def test_a_model_that_makes_no_embeddings_refuses_them() -> None:
    engine = make()
    try:
        await engine.start()
        with pytest.raises(UnsupportedField):
            await engine.embed(EmbedRequest(id="e", inputs=[[1]]))
    finally:
        await engine.close()


async def test_adapters_are_loaded_at_start_and_named_by_requests(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    engine = make(adapters=(f"mine={tmp_path}",))
    try:
        info = await engine.start()
        assert "adapter:mine" in info.capabilities
        assert ids_of(await collect(engine, [1], adapter="mine")) == [2, 3, 4, 5]
        with pytest.raises(RequestError, match="there is no adapter 'other'; loaded are mine"):
            await collect(engine, [1], adapter="other")
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("mode", "message"), [("dead", "EngineCore died"), ("garbage", "speaks another protocol")], ids=["dead", "garbage"]
)
async def test_a_core_that_dies_or_babbles_ends_its_streams(
    mode: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMRUN_PEER", mode)
    engine = make(max_restarts=0)
    try:
        await engine.start()
        with pytest.raises(EngineDied, match=message):
            await collect(engine, [1])
        with pytest.raises(EngineDied):
            await engine.health()
    finally:
        await engine.close()


async def test_a_killed_worker_ends_every_stream_at_once_and_is_started_again() -> None:
    engine = make()
    try:
        await engine.start()
        streams = [asyncio.create_task(collect(engine, [1], max_tokens=5000)) for _ in range(16)]
        await asyncio.sleep(0.1)
        assert engine.pid is not None
        began = time.monotonic()
        os.kill(engine.pid, signal.SIGKILL)
        ends = await asyncio.gather(*streams, return_exceptions=True)
        assert time.monotonic() - began < 1.0
        assert all(isinstance(end, EngineDied) for end in ends)
        assert ids_of(await collect(engine, [1])) == [2, 3, 4, 5]
        assert engine.num_restarts == 1
    finally:
        await engine.close()


async def test_a_failed_start_names_the_cause_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_PEER", "exit")
    engine = make()
    with pytest.raises(EngineStartFailed, match=r"exited with code 3[\s\S]*likely fix: there is not enough memory"):
        await engine.start()
    await engine.close()


async def test_a_start_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_PEER", "hang")
    engine = make(start_timeout_s=1.5)
    with pytest.raises(EngineStartFailed, match=r"not ready within 1\.5 s"):
        await engine.start()
    await engine.close()


async def test_nothing_is_left_in_the_private_folder_after_a_close() -> None:
    engine = make()
    await engine.start()
    connector: Any = engine._connector
    folder = connector._folder
    assert folder.is_dir()
    await engine.close()
    assert not folder.exists()
