"""What TensorRT-LLM says when versions or devices do not match, and what out=trtllm refuses by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.engines import trtllm
from runner.engines.hints import likely_fix
from runner.engines.trtllm.settings import read_settings
from runner.errors import EngineStartFailed, UsageError
from tests.runner.engines.trtllm.environments import DEMO, make_engine_folder, spec_of

LOGS = {
    "[TRT] IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == "
    "kSERIALIZATION_VERSION failed. Version tag does not match. Note: Current Version: 228, Serialized Engine "
    "Version: 237)": "its format is 237, this one reads 228",
    "RuntimeError: Failed to deserialize cuda engine": "another TensorRT",
    "Expected length != real length": "another TensorRT",
    "[json.exception.out_of_range.403] key 'builder_config' not found": "another TensorRT-LLM",
    "KeyError: 'builder_config'": "another TensorRT-LLM",
    "The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 8.0, please "
    "rebuild.": "capability 8.6 and this one has 8.0",
    "[TensorRT-LLM][ERROR] Tensor names in engine are not the same as expected, to use this GptSession": "another "
    "TensorRT-LLM",
    "AssertionError: Engine world size (2 * 1) != Runtime world size (1)": "another number of ranks",
    "RuntimeError: [TensorRT-LLM][ERROR] Assertion failed: mpiSize == tp * pp (cpp/tensorrt_llm/runtime/"
    "worldConfig.cpp:99)": "another number of ranks",
    "RuntimeError: [TensorRT-LLM][ERROR] Assertion failed: MPI size 1 != TP size 2 * PP size 1": "number of ranks",
    "[TensorRT-LLM][ERROR] Assertion failed: With communicationMode kLEADER, MPI worldSize is expected to be equal to "
    "tp*pp when participantIds are not specified": "another number of ranks",
    "ValueError: tp_size 4 is not consistent with the engine's tp_size 2": "leave --tensor-parallel-size out",
    "ValueError: Please use 'from tensorrt_llm._tensorrt_engine import LLM' instead": "install trtllm --version 1.2.1",
    "ImportError: libnvinfer.so.10: cannot open shared object file": "TensorRT, OpenMPI",
}


@pytest.mark.parametrize("log", LOGS)
def test_a_mismatch_is_explained(log: str) -> None:
    assert LOGS[log] in likely_fix(f"loading\n{log}\n", 1, "trtllm")


def test_an_engine_takes_its_limits_from_its_folder(tmp_path: Path) -> None:
    folder = make_engine_folder(tmp_path / "engine", ranks=2, max_batch_size=16)
    settings = read_settings(spec_of(folder, gpu_memory_utilization=0.5, extra={"--enable-chunked-prefill": True}))
    assert settings.is_engine and settings.max_running == 16
    assert settings.arguments["tensor_parallel_size"] == 2
    assert settings.arguments["enable_chunked_prefill"] is True
    assert settings.arguments["tokenizer"] == str(DEMO)
    assert settings.kv_cache == {"free_gpu_memory_fraction": 0.5}


def test_a_folder_takes_flags() -> None:
    settings = read_settings(spec_of(DEMO, context_length=512, max_running=4, tensor_parallel_size=2, dtype="float16"))
    wanted = {"max_seq_len": 512, "max_batch_size": 4, "tensor_parallel_size": 2, "dtype": "float16"}
    assert {name: settings.arguments[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 4},
        {"context_length": 4096},
        {"max_running": 64},
        {"dtype": "bfloat16"},
        {"kv_cache_dtype": "fp8"},
        {"adapters": ("a",)},
        {"num_nodes": 2},
        {"threads": 2},
        {"extra": {"model": "x"}},
    ],
    ids=str,
)
def test_what_a_compiled_engine_cannot_honour_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    folder = make_engine_folder(tmp_path / "engine", ranks=2)
    with pytest.raises(UsageError):
        read_settings(spec_of(folder, **options))


def test_without_tensorrt_llm_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLMRUN_TRTLLM_PYTHON", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EngineStartFailed, match="llmrun engines install trtllm"):
        trtllm.make_engine(spec_of(DEMO))


def test_dry_run_shows_the_arguments() -> None:
    assert "tensorrt_llm.LLM(model=" in trtllm.describe_command(spec_of(DEMO))[-1]
