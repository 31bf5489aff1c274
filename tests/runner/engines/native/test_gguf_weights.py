"""GGUF files: toys written as llama.cpp's converter writes them give the logits of the model they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from runner.engines.native.gguf_weights import GgufSource  # noqa: E402
from runner.engines.native.loader import build  # noqa: E402
from runner.engines.native.models import find_family  # noqa: E402
from tests.runner.engines.native.families import Runner  # noqa: E402


def load_gguf(path: Path, **options: Any) -> Any:
    """Our model of a GGUF file, float32."""
    source = GgufSource(path)
    family = find_family(source.config)
    assert family is not None
    spec, names = source.adapt(family.spec(source.config))
    return build(spec, names, source, dtype=torch.float32, **options)


def check_golden(model: Any, golden: Path, kind: str) -> None:
    """Greedy ids of every prompt whose margins are wide enough."""
    runner = Runner(model, num_blocks=256)
    for prompt in json.loads(golden.read_text())["prompts"]:
        wanted = prompt.get(f"greedy_ids_{kind}") or prompt["greedy_ids"]
        got = runner.greedy(prompt["prompt_ids"], len(wanted))
        assert got == wanted or prompt["min_margin"] < 0.001, (prompt["prompt_ids"], got, wanted)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("stories260k.f32", "f32"),
        ("stories260k.f16", "f16"),
        ("stories260k.q8_0", "q8_0"),
        ("stories3m.f16", "f16"),
        ("stories3m-split.f16-00001-of-00003", "f16"),
        ("stories3m.q8_0", "q8_0"),
        ("tinychat-3m.f16", "f16"),
        ("tinychat-3m.q8_0", "q8_0"),
        ("tinychat-3m.q4_0", "q4_0"),
    ],
)
def test_golden_ids(shared_data: Path, file: str, kind: str) -> None:
    models = shared_data / "models"
    name = file.split(".")[0].removesuffix("-split")
    check_golden(load_gguf(models / f"{file}.gguf"), models / f"{name}.golden.json", kind)
