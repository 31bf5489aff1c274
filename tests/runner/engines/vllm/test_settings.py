"""Our options as vLLM's flags: translated, overruled by --extra-engine-args, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_cards.card import ModelCard, TokenizerRef
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.vllm.sampling import sampling_map
from runner.engines.vllm.settings import read_settings
from runner.errors import RequestError, UsageError
from runner.types import GuidedDecoding, SamplingParams, TokenRequest

GGUF = {"kind": "gguf", "architecture": "llama"}
NODES = {"num_nodes": 2, "leader_addr": "[::1]:9876", "tensor_parallel_size": 4}


def spec(kind: str = "hf", architecture: str = "", tokenizer: TokenizerRef | None = None, **options: Any) -> EngineSpec:
    card = ModelCard(
        name="m",
        source="m",
        kind=kind,
        path="/models/m",
        architecture=architecture,
        tokenizer=tokenizer,  # type: ignore[arg-type]
    )
    return EngineSpec(name="vllm", card=card, options=EngineOptions(**options))


def test_flags_are_vllms_own() -> None:
    settings = read_settings(
        spec(
            context_length=2048,
            max_running=8,
            kv_cache_block_size=32,
            tensor_parallel_size=2,
            gpu_memory_utilization=0.5,
            max_batched_tokens=512,
            dtype="float32",
            quantize="fp8",
            kv_cache_dtype="fp8",
            base_gpu_id=2,
            threads=3,
        )
    )
    assert " ".join(settings.arguments) == (
        "--model /models/m --max-model-len 2048 --max-num-seqs 8 --block-size 32 --tensor-parallel-size 2 "
        "--gpu-memory-utilization 0.5 --max-num-batched-tokens 512 --dtype float32 --quantization fp8 "
        "--kv-cache-dtype fp8"
    )
    assert settings.env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert settings.env["OMP_NUM_THREADS"] == "3"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in settings.env


def test_one_process_is_enough_for_one_device() -> None:
    settings = read_settings(spec())
    assert settings.arguments[-2:] == ("--distributed-executor-backend", "uni")
    assert settings.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_nodes_are_told_where_they_meet_and_what_must_be_equal() -> None:
    settings = read_settings(spec(**NODES, dtype="float32", node_rank=1, base_gpu_id=4))
    assert " ".join(settings.arguments).endswith(
        "--nnodes 2 --node-rank 1 --master-addr ::1 --master-port 9876 --distributed-executor-backend mp"
    )
    assert settings.place is not None and settings.place.node == 1
    assert settings.place.facts["vLLM's flags"] == "--tensor-parallel-size 4 --dtype float32"
    assert settings.env["CUDA_VISIBLE_DEVICES"] == "4,5"


def test_extra_arguments_come_last_so_that_they_win() -> None:
    extra = {"max_model_len": 99, "enforce_eager": True, "enable-prefix-caching": False, "rope": {"a": 1}, "x": None}
    arguments = read_settings(spec(context_length=50, extra=extra)).arguments
    assert " ".join(arguments).endswith('--max-model-len 99 --enforce-eager --no-enable-prefix-caching --rope {"a": 1}')


def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    assert "VLLM_CPU_KVCACHE_SPACE" not in read_settings(spec()).env


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "gguf", "architecture": "mamba"}, "m is mamba; out=llamacpp runs it"),
        (GGUF | {"tensor_parallel_size": 2}, "in one process"),
        (GGUF | {"num_nodes": 2, "leader_addr": "a:1"}, "in one process"),
        (GGUF | {"vllm_mode": "headless"}, "--vllm-mode headless"),
        ({"allow_runtime_lora": True, "extra": {"max_loras": "many"}}, "'max_loras': got 'many'"),
        ({"gpu_layers": 3}, "--gpu-layers"),
        ({"quantize": "int4"}, "fp8"),
        ({"num_nodes": 2, "leader_addr": "a:1"}, "cannot be divided among --num-nodes 2"),
        ({"num_nodes": 2, "leader_addr": "a", "tensor_parallel_size": 2}, "HOST:PORT is wanted"),
        (NODES | {"vllm_mode": "headless"}, "--vllm-mode"),
        (NODES | {"data_parallel_size": 2}, "--num-nodes"),
        ({"extra": {"master_addr": "x"}}, "leave it out"),
        ({"extra": {"model": "x"}}, "leave it out"),
        ({"adapters": ("/nowhere",)}, "adapter_config.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_honoured_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_settings(spec(**fields))


def test_adapters_get_numbers_and_room_for_their_rank(tmp_path: Path) -> None:
    for name, rank in (("a", 4), ("b", 24)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(f'{{"r": {rank}}}')
    settings = read_settings(spec(adapters=(f"one={tmp_path}/a", f"{tmp_path}/b")))
    assert [(adapter.name, adapter.id) for adapter in settings.adapters] == [("one", 1), ("b", 2)]
    assert "--enable-lora --max-loras 3 --max-lora-rank 32" in " ".join(settings.arguments)


def test_adapters_that_come_later_have_room() -> None:
    settings = read_settings(spec(allow_runtime_lora=True))
    assert "--enable-lora --max-loras 9 --max-lora-rank 16" in " ".join(settings.arguments)
    settings = read_settings(spec(allow_runtime_lora=True, extra={"max-loras": 3, "max-lora-rank": 64}))
    assert " ".join(settings.arguments).endswith("--max-loras 3 --max-lora-rank 64")
    assert settings.adapter_room is not None
    assert (settings.adapter_room.most, settings.adapter_room.max_rank) == (2, 64)


def test_a_gguf_file_comes_by_our_load_format_with_a_folder_if_one_is_lent(tmp_path: Path) -> None:
    loader = '--load-format llmrun_gguf --model-loader-extra-config {"path": "/models/m"}'
    alone = read_settings(spec(**GGUF, tokenizer=TokenizerRef(kind="gguf", path="/models/m")))
    assert f"--model /models/m {loader}" in " ".join(alone.arguments)
    lent = TokenizerRef(kind="hf", path=str(tmp_path / "tokenizer.json"))
    assert "--model /models/m" in " ".join(read_settings(spec(**GGUF, tokenizer=lent)).arguments)
    (tmp_path / "config.json").write_text("{}")
    assert f"--model {tmp_path} {loader}" in " ".join(read_settings(spec(**GGUF, tokenizer=lent)).arguments)


def request(**fields: Any) -> TokenRequest:
    return TokenRequest(id="r", token_ids=[1], **fields)


def test_sampling_sends_only_what_is_not_neutral() -> None:
    assert sampling_map(request(max_tokens=3)) == {"max_tokens": 3, "detokenize": False, "output_kind": 1}


def test_every_sampling_field_is_mapped() -> None:
    sampling = SamplingParams(
        temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, seed=7, logit_bias={3: 1.0}, logprobs=0, bad_words_ids=((1, 2),),
    )  # fmt: skip
    fields = sampling_map(request(sampling=sampling, min_tokens=2, stop_token_ids=(5, 6)))
    assert fields["_bad_words_token_ids"] == [[1, 2]]
    assert fields["stop_token_ids"] == fields["_all_stop_token_ids"] == [5, 6]
    assert fields["logprobs"] == 0 and fields["seed"] == 7 and fields["min_tokens"] == 2
    assert {"temperature", "top_k", "top_p", "min_p", "logit_bias", "repetition_penalty"} <= set(fields)


def test_structured_output_is_one_of_vllms_kinds() -> None:
    wanted = [
        (GuidedDecoding(json_schema={"type": "object"}), {"json": {"type": "object"}}),
        (GuidedDecoding(json_object=True), {"json_object": True}),
        (GuidedDecoding(regex="a+"), {"regex": "a+"}),
        (GuidedDecoding(choice=("a", "b")), {"choice": ["a", "b"]}),
        (GuidedDecoding(grammar='root ::= "a"'), {"grammar": 'root ::= "a"'}),
    ]
    for guided, fields in wanted:
        assert sampling_map(request(sampling=SamplingParams(guided=guided)))["structured_outputs"] == fields
    with pytest.raises(RequestError, match="allows nothing"):
        sampling_map(request(sampling=SamplingParams(guided=GuidedDecoding(json_schema=False))))
