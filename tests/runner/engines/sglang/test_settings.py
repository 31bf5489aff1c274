"""Flags and --extra-engine-args as the arguments of SGLang's Engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_cards.card import ModelCard
from runner.engines import sglang
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.sglang.engine import check_names
from runner.engines.sglang.settings import cpu_variables, on_cpu, read_settings
from runner.errors import EngineStartFailed, UsageError

CARD = ModelCard(name="m", source="m", kind="hf", path="/models/m")


def spec(**options: Any) -> EngineSpec:
    card = options.pop("card", CARD)
    more = {name: options.pop(name) for name in ("argument", "tail") if name in options}
    return EngineSpec(name="sglang", card=card, options=EngineOptions(**options), **more)


def arguments(**options: Any) -> dict[str, Any]:
    return read_settings(spec(**options)).arguments


def test_nothing_asked_is_left_to_sglang() -> None:
    assert arguments() == {
        "model_path": "/models/m",
        "skip_tokenizer_init": True,
        "enable_custom_logit_processor": True,
    }


def test_flags_get_sglangs_names() -> None:
    made = arguments(
        context_length=4096,
        max_running=8,
        kv_cache_block_size=64,
        tensor_parallel_size=8,
        base_gpu_id=2,
        num_nodes=2,
        node_rank=1,
        leader_addr="10.217.98.122:9876",
        dtype="bfloat16",
        quantize="fp8",
        kv_cache_dtype="fp8",
        gpu_memory_utilization=0.8,
        max_batched_tokens=2048,
        seed=3,
    )
    expected = {
        "context_length": 4096,
        "max_running_requests": 8,
        "page_size": 64,
        "tp_size": 8,
        "base_gpu_id": 2,
        "nnodes": 2,
        "node_rank": 1,
        "dist_init_addr": "10.217.98.122:9876",
        "dtype": "bfloat16",
        "quantization": "fp8",
        "kv_cache_dtype": "fp8_e4m3",
        "mem_fraction_static": 0.8,
        "chunked_prefill_size": 2048,
        "random_seed": 3,
    }
    assert expected.items() <= made.items()


def test_auto_is_not_said() -> None:
    assert not {"dtype", "kv_cache_dtype", "device"} & set(
        arguments(dtype="auto", kv_cache_dtype="auto", device="auto")
    )


def test_extra_arguments_win_and_may_have_dashes() -> None:
    made = arguments(max_running=8, extra={"--max-running-requests": 4, "attention-backend": "triton", "pp_size": 2})
    assert (made["max_running_requests"], made["attention_backend"], made["pp_size"]) == (4, "triton", 2)


def test_on_a_cpu_it_runs_on_plain_torch_with_a_bounded_cache() -> None:
    settings = read_settings(spec(device="cpu", context_length=4096))
    assert settings.arguments["attention_backend"] == "torch_native"
    assert settings.arguments["disable_cuda_graph"] is True
    assert settings.arguments["max_total_tokens"] == 8 * 4096
    assert settings.env["SGLANG_USE_CPU_ENGINE"] == "1"
    assert on_cpu(settings.arguments, spec().options) == settings.arguments
    assert arguments(device="cpu", extra={"max_total_tokens": 99})["max_total_tokens"] == 99


def test_each_rank_on_a_cpu_gets_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    bind = "SGLANG_CPU_OMP_THREADS_BIND"
    assert cpu_variables(EngineOptions(tensor_parallel_size=2))[bind] == "0,2|1,3"
    assert cpu_variables(EngineOptions(tensor_parallel_size=2, num_nodes=2))[bind] == "0,1,2,3|0,1,2,3"
    assert cpu_variables(EngineOptions(tensor_parallel_size=8))[bind].count("|") == 7
    assert bind not in cpu_variables(EngineOptions())


def test_variables_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings(spec(threads=3)).env["OMP_NUM_THREADS"] == "3"
    assert read_settings(spec()).env["SGLANG_PYSPY_DUMP_BEFORE_CRASH"] == "0"
    monkeypatch.setenv("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "1")
    assert "SGLANG_PYSPY_DUMP_BEFORE_CRASH" not in read_settings(spec()).env


def test_speculation_goes_without_our_processor() -> None:
    settings = read_settings(spec(extra={"speculative_algorithm": "NGRAM"}))
    assert not settings.is_steered
    assert "enable_custom_logit_processor" not in settings.arguments


def test_adapters_are_peft_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapter_config"):
        arguments(adapters=(f"poet={tmp_path}",))
    (tmp_path / "adapter_config.json").write_text("{}")
    settings = read_settings(spec(adapters=(f"poet={tmp_path}",)))
    assert settings.arguments["lora_paths"] == [f"poet={tmp_path}"]
    assert settings.adapters == ("poet",)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"argument": "x"}, "takes no argument, got 'x'"),
        ({"tail": ("--x",)}, "nothing after --"),
        (
            {"card": ModelCard(name="g", source="g", kind="gguf", path="/g.gguf")},
            "out=llamacpp and out=native run GGUF",
        ),
        ({"card": ModelCard(name="g", source="g", kind="hf")}, "needs the weights of g"),
        ({"gpu_layers": 3}, "--gpu-layers"),
        ({"quantize": "int4"}, "got 'int4'; allowed are SGLang's own"),
        ({"tensor_parallel_size": 3, "num_nodes": 2, "leader_addr": "a:1"}, "3 cannot be divided among --num-nodes 2"),
        ({"tensor_parallel_size": 2, "num_nodes": 2}, "needs --leader-addr"),
        ({"extra": {"skip-tokenizer-init": False}}, "'skip_tokenizer_init' is llmrun's to say"),
    ],
)
def test_what_cannot_be_honoured_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_settings(spec(**asked))


def test_an_argument_that_sglang_does_not_know_is_named() -> None:
    server_args = SimpleNamespace(__struct_fields__=("model_path", "tp_size"))
    check_names({"model_path": "m"}, server_args)
    with pytest.raises(EngineStartFailed, match="no engine argument 'tp_sice'"):
        check_names({"model_path": "m", "tp_sice": 2}, server_args)


def test_the_command_for_dry_run_shows_the_arguments() -> None:
    command = sglang.describe_command(spec(device="cpu", context_length=64, engine_python="/usr/bin/env"))
    assert "SGLANG_USE_CPU_ENGINE=1" in command
    assert "context_length=64" in command[-1] and command[-1].startswith("sglang.Engine(model_path='/models/m'")
