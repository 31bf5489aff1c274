"""Adapters that come and go over HTTP on the real vLLM (make test-vllm)."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from tests.runner.engines.vllm.program import CHAT, Program, running
from tests.runner.engines.vllm.test_real import PYTHON, pytestmark
from tests.runner.engines.vllm.test_real_modes import make_adapter

__all__ = ["pytestmark"]
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
LONG = {**CHAT, "max_tokens": 400, "ignore_eos": True}
"""Hundreds of steps, so that much can happen meanwhile."""


async def post(program: Program, path: str, status: int, **body: Any) -> str:
    got, answer = await program.post(path, body)
    assert got == status, (path, body, answer)
    return answer if isinstance(answer, str) else str(answer["error"]["message"])


async def text_of(program: Program, model: str, body: dict[str, Any] = LONG) -> str:
    status, answer = await program.post("/v1/chat/completions", {**body, "model": model})
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


async def names(program: Program) -> list[str]:
    async with program.client.get(program.url + "/v1/models") as response:
        return [one["id"] for one in (await response.json())["data"]]


async def test_adapters_over_http(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("a", "b", "wide", "torn", "small")}
    for seed, folder in enumerate(folders.values()):
        folder.mkdir()
        make_adapter(folder, seed=seed, rank=64 if folder.name == "wide" else 8)
    _shrink(folders["small"] / "adapter_model.safetensors")
    (folders["torn"] / "adapter_model.safetensors").write_bytes(b"torn")
    async with running(str(PYTHON), "--allow-runtime-lora", "--dtype", "float32", timeout_s=180) as program:
        base = (await names(program))[0]
        plain = await text_of(program, base)
        said = await post(program, LOAD, 200, lora_name="one", lora_path=str(folders["a"]))
        assert said == "Success: LoRA adapter 'one' added successfully."
        assert await names(program) == [base, "one"]
        mine, again = await asyncio.gather(text_of(program, "one"), text_of(program, base))
        assert again == plain != mine
        await _check_refusals(program, base, folders)
        await _check_in_flight(program, folders["b"], mine)
        assert await text_of(program, base) == plain
        await _check_restart(program, base, plain, folders["b"])
        assert "removed successfully" in await post(program, UNLOAD, 200, lora_name="one")
        assert await names(program) == [base]
        await post(program, "/v1/chat/completions", 404, **CHAT, model="one")


def _shrink(path: Path) -> None:
    """As of a model with a quarter of the hidden size, which vLLM itself loads without a word."""
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    save_file({name: one[:, :64].contiguous() if "lora_A" in name else one for name, one in weights.items()}, path)


async def _check_refusals(program: Program, base: str, folders: dict[str, Path]) -> None:
    for status, words, name, path in (
        (404, "there is no LoRA adapter at", "x", "/nowhere"),
        (400, "rank 64, the most here is 16", "x", str(folders["wide"])),
        (400, "vLLM cannot load the adapter", "x", str(folders["torn"])),
        (400, "its q_proj is for a hidden size of 64, the model's is 256", "x", str(folders["small"])),
        (400, "loaded already", "one", str(folders["b"])),
        (400, "is served here", base, str(folders["b"])),
    ):
        assert words in await post(program, LOAD, status, lora_name=name, lora_path=path)
    assert "no adapter 'x'" in await post(program, UNLOAD, 404, lora_name="x")
    loads = [program.post(LOAD, {"lora_name": "two", "lora_path": str(folders["b"])}) for _ in range(4)]
    assert sorted([status for status, _ in await asyncio.gather(*loads)]) == [200, 400, 400, 400]
    assert await names(program) == [base, "one", "two"]
    await post(program, UNLOAD, 200, lora_name="two")


async def _check_in_flight(program: Program, other: Path, mine: str) -> None:
    """The name passes to another adapter while requests run with the first: those end as they would have, and the new
    ones meet nothing that was cached for it."""
    running_on = [asyncio.create_task(text_of(program, "one")) for _ in range(8)]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in running_on)
    await post(program, UNLOAD, 200, lora_name="one")
    await post(program, LOAD, 200, lora_name="one", lora_path=str(other))
    theirs = await text_of(program, "one")
    assert theirs != mine
    assert set(await asyncio.gather(*running_on)) == {mine}
    for _ in range(10):  # more than there is room for: slots are given back
        await post(program, LOAD, 200, lora_name="one", lora_path=str(other), load_inplace=True)
    assert await text_of(program, "one") == theirs


async def _check_restart(program: Program, base: str, plain: str, folder: Path) -> None:
    theirs = await text_of(program, "one")
    gone = folder.with_name("gone")
    shutil.copytree(folder, gone)
    await post(program, LOAD, 200, lora_name="gone", lora_path=str(gone))
    shutil.rmtree(gone)
    program.core().kill()
    async with asyncio.timeout(120):
        while (await program.post("/v1/chat/completions", CHAT))[0] != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    assert (await text_of(program, "one"), await text_of(program, base)) == (theirs, plain)
    status, answer = await program.post("/v1/chat/completions", {**CHAT, "model": "gone"})
    assert status == 404 and "no adapter 'gone'" in json.dumps(answer), answer
    await post(program, UNLOAD, 404, lora_name="gone")
