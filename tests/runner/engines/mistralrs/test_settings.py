"""What out=mistralrs makes of flags, and what it refuses. Needs no mistral.rs."""

from __future__ import annotations

from typing import Any

import pytest

from model_cards.resolve import resolve
from runner.engines import mistralrs
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.mistralrs.settings import Settings, read_settings
from runner.errors import EngineStartFailed, UsageError


def _spec(model: str = "demo-hf", **options: Any) -> EngineSpec:
    return EngineSpec(name="mistralrs", card=resolve(model), options=EngineOptions(**options))


def _read(model: str = "demo-hf", **options: Any) -> Settings:
    return read_settings(_spec(model, **options))


def test_a_folder_and_a_file() -> None:
    folder, file = _read(), _read("demo")
    assert folder.kind == "Plain" and folder.which["model_id"].endswith("demo/hf")
    assert file.kind == "GGUF" and file.which["quantized_filename"] == ["demo.q8_0.gguf"]


def test_flags_become_its_own_arguments() -> None:
    settings = _read(
        max_running=3,
        seed=7,
        quantize="Q4K",
        kv_cache_block_size=32,
        dtype="float16",
        kv_cache_dtype="fp8",
        gpu_memory_utilization=0.5,
        threads=2,
        extra={"--prefix-cache-n": 0, "topology": "t.yml"},
    )
    assert settings.arguments == {
        "max_seqs": 3,
        "seed": 7,
        "in_situ_quant": "Q4K",
        "pa_blk_size": 32,
        "memory_goal": 0.5,
        "prefix_cache_n": 0,
    }
    assert (settings.dtype, settings.kv_dtype, settings.which["topology"]) == ("F16", "F8E4M3", "t.yml")
    assert settings.env["RAYON_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    "options",
    [
        {"extra": {"chat_template": "x"}},
        {"dtype": "int3"},
        {"kv_cache_dtype": "int4"},
        {"adapters": ("a",)},
        {"gpu_layers": 3},
        {"tensor_parallel_size": 2},
        {"num_nodes": 2},
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="mistralrs"):
        _read(**options)


def test_without_mistral_rs_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMRUN_MISTRALRS_PYTHON", raising=False)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    with pytest.raises(EngineStartFailed, match="llmrun engines install mistralrs"):
        mistralrs.make_engine(_spec())


def test_dry_run_shows_the_runner() -> None:
    text = " ".join(mistralrs.describe_command(_spec("demo", max_running=2)))
    assert "mistralrs.Runner(Which.GGUF(" in text and "max_seqs=2" in text
