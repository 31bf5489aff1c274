"""A GGUF file on the real vLLM (make test-vllm)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from model_cards.resolve import resolve
from runner.engines import vllm
from runner.engines.base import Engine, EngineOptions, EngineSpec
from runner.engines.vllm.environment import ENVIRONMENT
from runner.errors import EngineStartFailed
from runner.types import GuidedDecoding, SamplingParams
from tests.runner.engines.vllm.test_real import KNOWN, PRESETS, PYTHON, answer, pytestmark

__all__ = ["pytestmark"]
HAS_READER = PYTHON is not None and msgspec.structs.replace(ENVIRONMENT, packages=("gguf",)).is_in(
    Path(PYTHON).parent.parent
)
STOPS = tuple(KNOWN["stop_token_ids"])


def make(**card: Any) -> Engine:
    options = EngineOptions(threads=1, context_length=1024, engine_python=PYTHON, start_timeout_s=120)
    return vllm.make_engine(EngineSpec(name="vllm", card=resolve("demo", **card), options=options))


async def is_right(engine: Engine, known: dict[str, Any]) -> bool:
    wanted = [token for token in known["greedy_ids"] if token not in STOPS]
    most = len(known["greedy_ids"]) + 1
    return await answer(engine, known["prompt_ids"], max_tokens=most, stop_token_ids=STOPS) == wanted


@pytest.mark.skipif(not HAS_READER, reason="no package gguf beside vllm: llmrun engines install vllm")
@pytest.mark.parametrize("lent", [None, str(PRESETS / "hf")], ids=["alone", "with its folder"])
async def test_a_file_gives_the_known_answers(lent: str | None) -> None:
    engine = make(model_config=lent)
    try:
        await engine.start()
        assert all(await asyncio.gather(*[is_right(engine, known) for known in KNOWN["cases"]]))
        guided = SamplingParams(temperature=0.0, guided=GuidedDecoding(choice=("Rome", "Oslo")))
        made = await answer(
            engine, KNOWN["cases"][0]["prompt_ids"], sampling=guided, max_tokens=16, stop_token_ids=STOPS
        )
    finally:
        await engine.close()
    from model_cards.tokenizer import load_tokenizer

    assert load_tokenizer(resolve("demo")).decode(made, skip_special=True) in ("Rome", "Oslo")


@pytest.mark.skipif(HAS_READER, reason="the package gguf is there")
def test_without_the_reader_the_package_and_other_engines_are_named() -> None:
    with pytest.raises(EngineStartFailed, match=r"by the package gguf, which .* lacks: .*pip install gguf==") as caught:
        make()
    assert "out=llamacpp and out=native" in caught.value.hint
