"""Environments with the stand-in for TensorRT-LLM, and engine folders for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from model_cards.resolve import resolve
from runner.engines import trtllm
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.process import ProcessEngine

FAKE = Path(__file__).parent / "fake"
DEMO = Path(__file__).parents[4] / "model_cards" / "presets" / "demo" / "hf"
VOCAB = 1024


def make_environment(folder: Path, version: str = "1.2.1", *, has_engine_module: bool = True) -> str:
    """A real virtual environment in which `import tensorrt_llm` finds the stand-in; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    (site / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    shutil.copytree(FAKE / "tensorrt_llm", site / "tensorrt_llm", ignore=shutil.ignore_patterns("__pycache__"))
    if not has_engine_module:
        shutil.rmtree(site / "tensorrt_llm" / "_tensorrt_engine")
    (site / "tensorrt_llm" / "VERSION").write_text(version)
    (site / f"tensorrt_llm-{version}.dist-info").mkdir()
    python = folder / "bin" / "python"
    program = folder / "bin" / "trtllm-build"
    program.write_text(f"#!{python}\n" + (FAKE / "trtllm_build.py").read_text())
    program.chmod(0o755)
    (folder / "bin" / "VERSION").write_text(version)
    return str(python)


def make_engine_folder(folder: Path, version: str = "1.2.1", **build: Any) -> Path:
    """As trtllm-build writes it."""
    ranks = build.pop("ranks", 1)
    folder.mkdir(parents=True)
    pretrained = {"architecture": "LlamaForCausalLM", "dtype": "float16", "vocab_size": VOCAB}
    pretrained["mapping"] = {"world_size": ranks, "tp_size": ranks}
    settings = {"max_seq_len": 2048, "max_batch_size": 32, "gather_generation_logits": True, **build}
    config = {"version": version, "pretrained_config": pretrained, "build_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (folder / f"rank{rank}.engine").write_bytes(b"toy")
    return folder


def spec_of(model: Path, **options: Any) -> EngineSpec:
    """An engine folder borrows the demo model's tokenizer, a folder has its own."""
    is_engine = (model / "rank0.engine").exists()
    card = resolve(str(model), model_config=str(DEMO) if is_engine else None)
    return EngineSpec(name="trtllm", card=card, options=EngineOptions(start_timeout_s=60, **options))


def make(model: Path, python: str, **options: Any) -> ProcessEngine:
    """An engine in a child process, not started."""
    engine = trtllm.make_engine(spec_of(model, engine_python=python, **options))
    assert isinstance(engine, ProcessEngine)
    return engine
