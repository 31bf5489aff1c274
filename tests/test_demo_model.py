"""The bundled demo model's files agree with each other, and our card layer reads them as their maker meant."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from model_cards import presets
from model_cards.resolve import resolve
from model_cards.template import load_template
from model_cards.tokenizer import load_tokenizer
from runner.engines.base import Engine, EngineOptions, EngineSpec
from runner.engines.llamacpp import make_engine
from runner.types import SamplingParams, TokenRequest

FOLDER = Path(presets.__file__).parent / "demo"
KINDS = ("demo", "demo-hf")
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """conformance.json."""
    data: dict[str, Any] = json.loads((FOLDER / "conformance.json").read_text(encoding="utf-8"))
    return data


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < MAX_BYTES


def test_known_answers_have_wide_margins_and_end(record: dict[str, Any]) -> None:
    cases = record["cases"]
    assert len(cases) >= 100
    assert record["min_margin"] == min(case["min_margin"] for case in cases) > 0.3
    texts = {case["messages"][-1]["content"]: case["text"] for case in cases if len(case.get("messages", [])) == 1}
    assert texts["What is the capital of South Africa?"] == "The capital of South Africa is Pretoria."
    assert texts["What is 7 plus 8?"] == "7 plus 8 is 15."


@pytest.mark.parametrize("alias", KINDS)
def test_prompt_ids_are_those_of_the_maker(alias: str, record: dict[str, Any]) -> None:
    card = resolve(alias)
    tokenizer, template = load_tokenizer(card), load_template(card)
    assert template is not None
    for case in record["cases"]:
        prompt = case.get("prompt")
        if prompt is None:
            prompt = template.render(case["messages"], add_generation_prompt=True)
        assert tokenizer.encode(prompt) == case["prompt_ids"]
        assert tokenizer.decode(case["greedy_ids"]) == case["text"]


@pytest.mark.parametrize("alias", KINDS)
def test_both_cards_stop_at_both_ends(alias: str) -> None:
    card = resolve(alias)
    assert set(card.eos_token_ids) == {0, 2}
    assert (card.context_length, card.vocab_size) == (2048, 1024)
    assert not card.add_bos and not card.add_eos


def test_gguf_and_folder_hold_the_same_numbers() -> None:
    theirs = load_file_as_float(FOLDER / "hf" / "model.safetensors")
    reader = gguf.GGUFReader(FOLDER / "demo.q8_0.gguf")
    ours = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    assert len(ours) == len(theirs)
    np.testing.assert_array_equal(ours["token_embd.weight"], theirs["model.embed_tokens.weight"])
    np.testing.assert_array_equal(ours["blk.1.ffn_down.weight"], theirs["model.layers.1.mlp.down_proj.weight"])
    q = theirs["model.layers.0.self_attn.q_proj.weight"]
    interleaved = q.reshape(4, 2, 32, -1).swapaxes(1, 2).reshape(q.shape)
    np.testing.assert_array_equal(ours["blk.0.attn_q.weight"], interleaved)


def load_file_as_float(path: Path) -> dict[str, Any]:
    """bfloat16 tensors as float32 without torch."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    found = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        assert about["dtype"] == "BF16"
        bits = np.frombuffer(raw[8 + size + begin : 8 + size + end], "<u2").astype("<u4") << 16
        found[name] = bits.view("<f4").reshape(about["shape"])
    return found


@pytest.mark.llamacpp
async def test_llamacpp_gives_the_known_ids(record: dict[str, Any], llamacpp_library: Path) -> None:
    card = resolve("demo")
    options = EngineOptions(context_length=2048, max_running=4, threads=1)
    engine = make_engine(EngineSpec(name="llamacpp", card=card, options=options))
    await engine.start()
    try:
        got = await asyncio.gather(*(_greedy(engine, str(i), case) for i, case in enumerate(record["cases"])))
    finally:
        await engine.close()
    assert got == [case["greedy_ids"] for case in record["cases"]]


async def _greedy(engine: Engine, request_id: str, case: dict[str, Any]) -> list[int]:
    request = TokenRequest(
        id=request_id,
        token_ids=case["prompt_ids"],
        sampling=SamplingParams(temperature=0.0),
        max_tokens=len(case["greedy_ids"]) + 1,
        stop_token_ids=(0, 2),
    )
    ids: list[int] = []
    async with contextlib.aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            ids += delta.token_ids
            assert delta.finish in (None, "stop")
    return ids
