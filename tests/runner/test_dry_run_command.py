"""--dry-run: our flags in the words of each engine, with --extra-engine-args on top; nothing is started."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

from runner.cli import main

FLAGS = ["--context-length", "512", "--max-running", "4", "--threads", "1"]
GPU = ["--dtype", "bfloat16", "--kv-cache-block-size", "16", "--gpu-memory-utilization", "0.5"]


def command(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The engine's own command, as --json has it."""
    assert main([*words, "--dry-run", "--json"]) == 0
    told: list[str] = json.loads(capsys.readouterr().out)["engine"]["command"]
    return told


def test_vllm_in_its_own_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    extra = tmp_path / "extra.yaml"
    extra.write_text("max_model_len: 256\nenforce_eager: true\n")
    words = ["out=vllm", "demo-hf", *FLAGS, *GPU, "--engine-python", sys.executable, "--extra-engine-args", str(extra)]
    told = command(capsys, *words)
    assert "OMP_NUM_THREADS=1" in told
    rest = told[told.index(sys.executable) :]
    assert rest[1:3] == ["-m", "runner.engines.vllm.worker"]
    pairs = list(itertools.pairwise(rest))
    for pair in (
        ("--max-model-len", "512"),
        ("--max-num-seqs", "4"),
        ("--block-size", "16"),
        ("--gpu-memory-utilization", "0.5"),
        ("--dtype", "bfloat16"),
    ):
        assert pair in pairs
    last = max(at for at, word in enumerate(rest) if word == "--max-model-len")
    assert rest[last + 1] == "256"  # the file wins
    assert "--enforce-eager" in rest


def test_llamacpp_in_its_own_parameters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    extra = tmp_path / "extra.json"
    extra.write_text('{"flash_attn": true, "n_batch": 64}')
    told = command(capsys, "out=llamacpp", "demo", *FLAGS, "-ngl", "0", "--extra-engine-args", str(extra))
    assert told[:3] == [sys.executable, "-m", "runner.engines.child"]
    assert {"n_ctx=512", "n_seq_max=4", "n_threads=1", "n_gpu_layers=0", "flash_attn=true", "n_batch=64"} <= set(told)


def test_native_with_its_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_NATIVE_PYTHON", sys.executable)
    told = command(capsys, "out=native", "demo-hf", *FLAGS, *GPU)
    wanted = {"context_length=512", "max_running=4", "threads=1", "block_size=16", "gpu_memory_utilization=0.5"}
    assert wanted | {"dtype=bfloat16"} <= set(told)


def test_what_an_engine_refuses_is_refused_before_it_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["out=llamacpp", "demo", "--kv-cache-block-size", "16", "--dry-run"]) == 2
    assert "KV cache without blocks" in capsys.readouterr().err
