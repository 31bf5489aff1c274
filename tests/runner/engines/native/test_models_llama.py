"""The LLaMA kind of families at toy size, equal to transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.runner.engines.native.families import Runner, check_family, load_folder, toy  # noqa: E402

DEMO = Path("model_cards/presets/demo/hf")
GOLDENS = [("stories260k-hf", "stories260k"), ("stories260k-hd32-hf", "stories260k"), ("stories3m-hf", "stories3m")]


def test_llama(tmp_path: Path) -> None:
    check_family(toy(transformers.LlamaConfig, transformers.LlamaForCausalLM), tmp_path)


@pytest.mark.parametrize(("folder", "golden"), GOLDENS)
def test_golden_ids(shared_data: Path, folder: str, golden: str) -> None:
    prompts = json.loads((shared_data / "models" / f"{golden}.golden.json").read_text())["prompts"]
    runner = Runner(load_folder(shared_data / "models" / folder), num_blocks=256)
    for prompt in prompts:
        wanted = prompt["greedy_ids"]
        assert runner.greedy(prompt["prompt_ids"], len(wanted)) == wanted
