"""Settings: what the user asked of out=sglang, as the arguments of SGLang's Engine (ServerArgs) and its variables.

Plain data; launcher and child both read it. What only a look at the machine tells (is there a GPU?) the child adds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.refusals import read_adapter, refuse_words
from runner.errors import UsageError

_ARGUMENTS = {
    "context_length": "context_length",
    "max_running": "max_running_requests",
    "kv_cache_block_size": "page_size",
    "tensor_parallel_size": "tp_size",
    "base_gpu_id": "base_gpu_id",
    "num_nodes": "nnodes",
    "node_rank": "node_rank",
    "leader_addr": "dist_init_addr",
    "device": "device",
    "dtype": "dtype",
    "quantize": "quantization",
    "kv_cache_dtype": "kv_cache_dtype",
    "gpu_memory_utilization": "mem_fraction_static",
    "max_batched_tokens": "chunked_prefill_size",
    "seed": "random_seed",
}
"""Our option -> SGLang's argument (0.4.6 to 0.5.23)."""
_DEFAULTS = EngineOptions()
_KV_DTYPES = {"fp8": "fp8_e4m3", "bf16": "bfloat16"}
_OURS = (
    "model_path",
    "tokenizer_path",
    "skip_tokenizer_init",
    "stream_output",
    "incremental_streaming_output",
    "enable_custom_logit_processor",
    "custom_sigquit_handler",
    "tokenizer_worker_num",
    "node_rank",
    "nnodes",
    "dist_init_addr",
)
"""Arguments that the launcher decides; each has a flag of ours, or must be as it is."""
_VARIABLES = {
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",  # else a death of one rank is followed by 65 s of diagnostics
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    "SGLANG_BLOCK_NONZERO_RANK_CHILDREN": "0",  # a follower's Engine() returns; we watch its processes ourselves
    "SGLANG_RETURN_ORIGINAL_LOGPROB": "1",  # log-probabilities do not depend on the temperature
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
LATE_SAMPLING = "SGLANG_ENABLE_DELAY_SAMPLE"
"""SGLang's overlap scheduler samples when the last step's tokens are known; else our processor would be one late."""
_CPU_VARIABLES = {"SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1"}
_CPU_ARGUMENTS: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "max_running_requests": 32,
}
_CPU_KV_CONTEXTS = 8
"""Tokens of the KV cache on a CPU, in full contexts: SGLang's own default is a share of all memory."""
_CPU_KV_TOKENS = 16384
"""At least this many, if the context is shorter or unknown."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How SGLang's Engine is made."""

    arguments: dict[str, Any]
    env: dict[str, str]
    adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters."""

    @property
    def is_steered(self) -> bool:
        """Whether our logit processor sees one row a request and token: speculation makes several."""
        return self.arguments.get("speculative_algorithm") is None


def read_settings(spec: EngineSpec) -> Settings:
    """Flags, and --extra-engine-args (SGLang's own names) on top. Raises UsageError for what cannot be honoured."""
    _refuse(spec)
    options = spec.options
    arguments: dict[str, Any] = {"model_path": _model(spec), "skip_tokenizer_init": True}
    for name, argument in _ARGUMENTS.items():
        value = getattr(options, name)
        if value != getattr(_DEFAULTS, name) and value != "auto":
            arguments[argument] = value
    if "kv_cache_dtype" in arguments:
        arguments["kv_cache_dtype"] = _KV_DTYPES.get(arguments["kv_cache_dtype"], arguments["kv_cache_dtype"])
    adapters = [read_adapter(text, "sglang") for text in options.adapters]
    if adapters:
        arguments["lora_paths"] = [f"{name}={path}" for name, path in adapters]
    arguments.update(_extra(options.extra))
    env = _environment(options)
    if arguments.get("device") == "cpu":
        arguments, env = on_cpu(arguments, options), env | cpu_variables(options)
    settings = Settings(arguments=arguments, env=env, adapters=tuple(name for name, _ in adapters))
    if settings.is_steered:
        arguments["enable_custom_logit_processor"] = True
    return settings


def on_cpu(arguments: dict[str, Any], options: EngineOptions) -> dict[str, Any]:
    """The arguments for a machine without a GPU. What is said already stays, so it may be done twice."""
    room = _CPU_KV_CONTEXTS * int(arguments.get("context_length") or 0)
    defaults = {**_CPU_ARGUMENTS, "max_total_tokens": max(room, _CPU_KV_TOKENS)}
    return {**arguments, **{name: value for name, value in defaults.items() if name not in arguments}}


def cpu_variables(options: EngineOptions) -> dict[str, str]:
    """Variables for a machine without a GPU; those that the user has set win."""
    variables = dict(_CPU_VARIABLES)
    if options.tensor_parallel_size > 1:
        variables["SGLANG_CPU_OMP_THREADS_BIND"] = _core_groups(options)
    return {name: value for name, value in variables.items() if name not in os.environ}


def _core_groups(options: EngineOptions) -> str:
    """Cores of each rank, `0,1|2,3`: SGLang wants them said where there are more ranks than NUMA nodes."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    num_local = max(1, options.tensor_parallel_size // options.num_nodes)
    groups = [cores[rank::num_local] or [cores[rank % len(cores)]] for rank in range(num_local)]
    return "|".join(",".join(map(str, groups[rank % num_local])) for rank in range(options.tensor_parallel_size))


def _model(spec: EngineSpec) -> str:
    path = spec.card.path
    if path is None:
        raise UsageError(f"out=sglang needs the weights of {spec.card.name} on this machine; name its folder or Hub id")
    return str(Path(path).absolute())


def _environment(options: EngineOptions) -> dict[str, str]:
    """Variables that the user has set win."""
    env = {name: value for name, value in _VARIABLES.items() if name not in os.environ}
    env[LATE_SAMPLING] = "1"
    if options.threads is not None:
        env["OMP_NUM_THREADS"] = str(options.threads)
    return env


def _extra(extra: dict[str, Any]) -> dict[str, Any]:
    """SGLang's names with dashes or underscores; whether it knows them only the child can tell."""
    named = {key.lstrip("-").replace("-", "_"): value for key, value in extra.items()}
    for key in _OURS:
        if key in named:
            raise UsageError(f"out=sglang: the engine argument {key!r} is llmrun's to say; leave it out")
    return named


def _refuse(spec: EngineSpec) -> None:
    options = spec.options
    refuse_words(spec)
    if spec.card.kind == "gguf":
        raise UsageError("out=sglang runs Hugging Face folders here; out=llamacpp and out=native run GGUF files")
    if options.gpu_layers is not None:
        raise UsageError("out=sglang puts all layers on the GPU; leave --gpu-layers out (or use out=llamacpp)")
    if options.quantize in ("int8", "int4"):
        raise UsageError(
            f"out=sglang: --quantize: got {options.quantize!r}; allowed are SGLang's own methods, such as fp8 or "
            f"w8a8_int8 (out=native makes int8 and int4)"
        )
    if options.tensor_parallel_size % options.num_nodes:
        raise UsageError(
            f"--tensor-parallel-size counts the GPUs of all nodes: {options.tensor_parallel_size} cannot be divided "
            f"among --num-nodes {options.num_nodes}"
        )
    if options.num_nodes > 1 and options.leader_addr is None:
        raise UsageError("--num-nodes above 1 needs --leader-addr HOST:PORT, the same on every node (node 0 listens)")
