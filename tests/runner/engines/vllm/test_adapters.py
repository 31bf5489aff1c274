"""Adapters that come and go while out=vllm runs, against the peer (core_peer.py); real: test_real_adapters.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from model_cards.card import ModelCard
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.process import ProcessEngine
from runner.engines.replicas import Replicas
from runner.engines.vllm.adapter_folder import ModelShape, read_rank
from runner.engines.vllm.settings import read_settings
from runner.errors import EngineDied, RequestError, UnknownAdapter, UnsupportedField, UsageError
from runner.types import TokenRequest
from tests.runner.engines.vllm.test_vllm import collect, ids_of, make


def folder(path: Path, **config: Any) -> str:
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps({"r": 8, "step": 2, **config}))
    return str(path)


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[ProcessEngine]:
    engine = make(**{"allow_runtime_lora": True, **options})
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def held(engine: ProcessEngine) -> float:
    return (await engine.stats())["num_adapters"]


async def test_an_adapter_is_there_from_its_load_to_its_unload(tmp_path: Path) -> None:
    async with running() as engine:
        assert engine.info is not None and "load_adapter" in engine.info.capabilities
        info = await engine.load_adapter("mine", folder(tmp_path / "a"))
        assert "adapter:mine" in info.capabilities and engine.info == info
        assert ids_of(await collect(engine, [1], adapter="mine")) == [3, 5, 7, 9]
        assert ids_of(await collect(engine, [1])) == [2, 3, 4, 5]
        info = await engine.unload_adapter("mine")
        assert "adapter:mine" not in info.capabilities and await held(engine) == 0
        with pytest.raises(UnknownAdapter, match="there is no adapter 'mine'; loaded are none"):
            await collect(engine, [1], adapter="mine")
        with pytest.raises(UnknownAdapter, match="no adapter 'mine'"):
            await engine.unload_adapter("mine")


async def test_a_name_that_is_used_again_is_another_adapter(tmp_path: Path) -> None:
    """To vLLM too, which caches prompts by the adapter's name: the peer would refuse the same name."""
    async with running() as engine:
        await engine.load_adapter("mine", folder(tmp_path / "a"))
        with pytest.raises(RequestError, match="'mine' is loaded already; unload it, or replace it with load_inplace"):
            await engine.load_adapter("mine", folder(tmp_path / "b", step=3))
        await engine.load_adapter("mine", folder(tmp_path / "b", step=3), replace=True)
        assert ids_of(await collect(engine, [1], adapter="mine")) == [4, 7, 10, 13]
        assert await held(engine) == 1


async def test_what_cannot_be_loaded_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{")
    async with running(extra={"max_lora_rank": 32}) as engine:
        for path, message, kind in (
            (str(tmp_path / "none"), "there is no LoRA adapter at", UnknownAdapter),
            ("\0", "LoRA adapter|no readable rank", RequestError),
            (str(tmp_path / "broken"), "no readable rank", RequestError),
            (folder(tmp_path / "r", r="8"), "has the rank '8', which is none", RequestError),
            (folder(tmp_path / "large", r=64), "has rank 64, the most here is 32; start with a larger", RequestError),
            (folder(tmp_path / "fault", fault="bad shape"), "vLLM cannot load .*: bad shape", RequestError),
        ):
            with pytest.raises(kind, match=message):
                await engine.load_adapter("mine", path)
        assert await held(engine) == 0 and engine.num_restarts == 0
        with pytest.raises(RequestError, match="got 257 characters"):
            await engine.load_adapter("m" * 257, folder(tmp_path / "a"))
        await engine.load_adapter("mine", folder(tmp_path / "a"))


MODULES = "base_model.model.model.layers"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"1.self_attn.q_proj.lora_A.weight": [8, 32]}, "its q_proj is for a hidden size of 32, the model's is 64"),
        ({"0.mlp.down_proj.lora_B.weight": [128, 8]}, "its down_proj is for a hidden size of 128"),
        ({"2.self_attn.q_proj.lora_B.weight": [64, 8]}, "it has a layer 2, the model has 2"),
        ({"1.self_attn.q_proj.lora_A.weight": [8, 64], "1.self_attn.q_proj.lora_B.weight": [48, 8]}, None),
        ({"0.mlp.down_proj.lora_A.weight": [8, 96], "0.mlp.down_proj.lora_B.weight": [64, 8]}, None),
    ],
    ids=["input", "output", "layer", "fits", "fits, wide"],
)
def test_an_adapter_of_another_model_is_refused(
    shapes: dict[str, list[int]], words: str | None, tmp_path: Path
) -> None:
    """vLLM would load it and answer wrongly."""
    header = {f"{MODULES}.{name}": {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}
    raw = json.dumps({"__metadata__": {}, **header}).encode()
    path = folder(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    if words is None:
        assert read_rank(path, ModelShape(2, 64)) == (path, 8)
    else:
        with pytest.raises(RequestError, match=f"is of another model: {words}"):
            read_rank(path, ModelShape(2, 64))
    assert read_rank(path, ModelShape(0, 0)) == (path, 8)
    card = ModelCard(name="m", source="m", kind="hf", path="/m", details={"layers": 2, "hidden_size": 64})
    spec = EngineSpec(name="vllm", card=card, options=EngineOptions(adapters=(path,)))
    with contextlib.nullcontext() if words is None else pytest.raises(UsageError, match="is of another model"):
        read_settings(spec)


async def test_a_request_keeps_the_adapter_that_is_unloaded_under_it(tmp_path: Path) -> None:
    async with running() as engine:
        await engine.load_adapter("mine", folder(tmp_path / "a"))
        request = TokenRequest(id="t", token_ids=[1], max_tokens=30, adapter="mine")
        async with (
            asyncio.timeout(20),
            aclosing(engine.generate(request)) as stream,
            aclosing(engine.generate(request)) as left,
        ):
            first = await anext(stream)
            await anext(left)
            await engine.unload_adapter("mine")
            await engine.load_adapter("mine", folder(tmp_path / "b", step=3))
            assert ids_of(await collect(engine, [1], adapter="mine")) == [4, 7, 10, 13]
            await left.aclose()
            assert await held(engine) == 2
            rest = [delta async for delta in stream]
        assert ids_of([first, *rest]) == [1 + 2 * at for at in range(1, 31)]
        assert await held(engine) == 1 and engine.num_restarts == 0


async def test_there_is_room_for_so_many_and_those_that_leave_count(tmp_path: Path) -> None:
    async with running(extra={"max_loras": 3}) as engine:  # one slot of vLLM's stays empty
        for name in ("a", "b"):
            await engine.load_adapter(name, folder(tmp_path / name))
        with pytest.raises(RequestError, match="no room for another adapter: 2 are loaded, and 2 is the most"):
            await engine.load_adapter("c", folder(tmp_path / "c"))
        request = TokenRequest(id="t", token_ids=[1], max_tokens=5000, adapter="a")
        async with asyncio.timeout(20), aclosing(engine.generate(request)) as stream:
            await anext(stream)
            await engine.unload_adapter("a")
            with pytest.raises(RequestError, match="1 are loaded, 1 that are unloaded still run, and 2 is the most"):
                await engine.load_adapter("c", folder(tmp_path / "c"))
        await engine.load_adapter("c", folder(tmp_path / "c"))


async def test_many_at_once(tmp_path: Path) -> None:
    async with running() as engine:
        same = [engine.load_adapter("mine", folder(tmp_path / "a")) for _ in range(4)]
        others = [engine.load_adapter(f"n{at}", folder(tmp_path / f"n{at}", step=at)) for at in range(2, 6)]
        results = await asyncio.gather(*same, *others, return_exceptions=True)
        assert sum(isinstance(result, RequestError) for result in results) == 3
        answers = await asyncio.gather(*(collect(engine, [1], adapter=f"n{at}") for at in range(2, 6)))
        assert [ids_of(answer)[0] for answer in answers] == [3, 4, 5, 6]
        assert await held(engine) == 5


async def test_a_client_that_leaves_during_a_load_leaves_no_adapter(tmp_path: Path) -> None:
    async with running() as engine:
        loading = asyncio.create_task(engine.load_adapter("mine", folder(tmp_path / "a")))
        while not engine._connection.link.replies:  # type: ignore[union-attr]  # noqa: ASYNC110
            await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert await held(engine) == 0
        await engine.load_adapter("mine", folder(tmp_path / "a"))


async def test_adapters_survive_a_restart_but_for_one_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(adapters=(f"first={folder(tmp_path / 'first', step=5)}",)) as engine:
        await engine.load_adapter("mine", folder(tmp_path / "a"))
        await engine.load_adapter("gone", folder(tmp_path / "gone"))
        folder(tmp_path / "gone", fault="it was changed")
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied):
            await collect(engine, [1], max_tokens=5000)
        assert ids_of(await collect(engine, [1], adapter="mine")) == [3, 5, 7, 9]
        assert ids_of(await collect(engine, [1], adapter="first")) == [6, 11, 16, 21]
        with pytest.raises(UnknownAdapter, match="no adapter 'gone'; loaded are first, mine"):
            await collect(engine, [1], adapter="gone")
        assert "the adapter gone is no longer offered: vLLM cannot load" in capsys.readouterr().err
        assert engine.info is not None and "adapter:gone" not in engine.info.capabilities


async def test_all_replicas_have_it_or_none(tmp_path: Path) -> None:
    engine = Replicas([make(allow_runtime_lora=True), make(allow_runtime_lora=True)])
    try:
        await engine.start()
        info = await engine.load_adapter("mine", folder(tmp_path / "a"))
        assert "adapter:mine" in info.capabilities and info.details["replicas"] == 2
        answers = await asyncio.gather(*(_first(engine) for _ in range(6)))
        assert answers == [3] * 6
        await engine.engines[1].unload_adapter("mine")  # as after a restart at which it could not be loaded
        with pytest.raises(RequestError, match="'mine' is loaded already"):
            await engine.load_adapter("mine", folder(tmp_path / "a"))
        with pytest.raises(UnknownAdapter):
            await engine.engines[1].unload_adapter("mine")
        await engine.unload_adapter("mine")
        with pytest.raises(UnknownAdapter):
            await engine.unload_adapter("mine")
    finally:
        await engine.close()


async def _first(engine: Replicas) -> int:
    async with aclosing(engine.generate(TokenRequest(id="t", token_ids=[1], adapter="mine"))) as stream:
        return (await anext(stream)).token_ids[0]


async def test_without_the_flag_none_is_loaded_later(tmp_path: Path) -> None:
    async with running(allow_runtime_lora=False) as engine:
        assert engine.info is not None and "load_adapter" not in engine.info.capabilities
        with pytest.raises(UnsupportedField, match="at its start only"):
            await engine.load_adapter("mine", folder(tmp_path / "a"))
        with pytest.raises(UnsupportedField, match="at its start only"):
            await engine.unload_adapter("mine")
