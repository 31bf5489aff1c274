"""Settings: what the user asked of out=trtllm, as the arguments of TensorRT-LLM's LLM (0.12 to 1.4).

Plain data; launcher and child both read it. Names: tests/unittest/api_stability/references*/llm.yaml of
NVIDIA/TensorRT-LLM. What only the installed release tells, the child adds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from runner.engines.base import EngineSpec
from runner.errors import UsageError

_ARGUMENTS = {"max_running": "max_batch_size", "max_batched_tokens": "max_num_tokens", "dtype": "dtype"}
"""Our option -> LLM's argument."""
_KV_CACHE = {
    "gpu_memory_utilization": "free_gpu_memory_fraction",
    "kv_cache_block_size": "tokens_per_block",
    "kv_cache_dtype": "dtype",
}
"""Our option -> KvCacheConfig's field."""
_OURS = ("model", "tokenizer", "skip_tokenizer_init", "tensor_parallel_size", "guided_decoding_backend", "backend")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How TensorRT-LLM's LLM is made."""

    is_engine: bool
    """A compiled engine, not a Hugging Face folder."""
    arguments: dict[str, Any]
    kv_cache: dict[str, Any]
    """Fields of KvCacheConfig."""
    env: dict[str, str]
    max_running: int | None = None


def read_settings(spec: EngineSpec) -> Settings:
    """Flags, and --extra-engine-args (TensorRT-LLM's own names) on top. Raises UsageError for what cannot be."""
    _refuse(spec)
    options, card = spec.options, spec.card
    is_engine = card.kind == "trtllm"
    arguments: dict[str, Any] = {"model": str(Path(card.path or "").absolute())}
    arguments.update(_tokenizer(spec))
    num_ranks = int(card.details.get("ranks") or 1) if is_engine else options.tensor_parallel_size
    if num_ranks > 1:
        arguments["tensor_parallel_size"] = num_ranks
    for name, argument in _ARGUMENTS.items():
        value = getattr(options, name)
        if value is not None and value != "auto":
            arguments[argument] = value
    if options.context_length is not None and not is_engine:
        arguments["max_seq_len"] = options.context_length
    kv_cache = {field: getattr(options, name) for name, field in _KV_CACHE.items() if getattr(options, name)}
    extra = {key.lstrip("-").replace("-", "_"): value for key, value in options.extra.items()}
    for key in _OURS:
        if key in extra:
            raise UsageError(f"out=trtllm: the engine argument {key!r} is llmrun's to say; leave it out")
    kv_cache.update(extra.pop("kv_cache_config", {}))
    return Settings(
        is_engine=is_engine,
        arguments={**arguments, **extra},
        kv_cache=kv_cache,
        env={name: value for name, value in _VARIABLES.items() if name not in os.environ},
        max_running=_max_running(spec, is_engine),
    )


_VARIABLES = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TLLM_LOG_LEVEL": "INFO"}


def _tokenizer(spec: EngineSpec) -> dict[str, Any]:
    """Grammars need a tokenizer in TensorRT-LLM; without one it takes and gives token ids all the same."""
    tokenizer = spec.card.tokenizer
    if tokenizer is None or tokenizer.kind != "hf":
        return {"skip_tokenizer_init": True}
    return {"tokenizer": str(Path(tokenizer.path).absolute().parent), "guided_decoding_backend": "xgrammar"}


def _max_running(spec: EngineSpec, is_engine: bool) -> int | None:
    built = spec.card.details.get("max_batch_size") if is_engine else None
    wanted = spec.options.max_running
    if built and wanted and wanted > int(built):
        raise UsageError(
            f"--parallel {wanted}: the engine {spec.card.path} was built for {built} requests at once; lower it, or "
            f"build it again with llmrun build-engine --max-batch-size {wanted}"
        )
    return wanted or (int(built) if built else None)


def _refuse(spec: EngineSpec) -> None:
    options, card = spec.options, spec.card
    if spec.argument or spec.tail:
        raise UsageError("out=trtllm takes no argument and nothing after --; use --extra-engine-args")
    if card.path is None:
        raise UsageError(f"out=trtllm needs {card.name} on this machine; name an engine or a Hugging Face folder")
    if options.adapters:
        raise UsageError("out=trtllm: --lora is not passed on; out=vllm honours it")
    if options.gpu_layers is not None or options.threads is not None:
        raise UsageError("out=trtllm runs on GPUs only; leave --gpu-layers and --threads out")
    if options.num_nodes > 1:
        raise UsageError(
            "out=trtllm: several machines are started by MPI, not by --num-nodes: run llmrun under "
            "`mpirun -n RANKS trtllm-llmapi-launch`, or use out=vllm or out=sglang"
        )
    if card.kind != "trtllm":
        return
    ranks = int(card.details.get("ranks") or 1)
    if options.tensor_parallel_size not in (1, ranks):
        raise UsageError(
            f"--tensor-parallel-size {options.tensor_parallel_size}: the engine {card.path} was built for {ranks} "
            f"rank(s); leave the flag out, or build it again with llmrun build-engine --tp-size"
        )
    if options.context_length and card.context_length and options.context_length > card.context_length:
        raise UsageError(
            f"--context-length {options.context_length}: the engine {card.path} was built for {card.context_length} "
            f"tokens; lower it, or build it again with llmrun build-engine --max-seq-len {options.context_length}"
        )
    if options.dtype not in (None, "auto") or options.kv_cache_block_size:
        raise UsageError("out=trtllm: dtype and block size of a compiled engine were chosen when it was built")
    if options.kv_cache_dtype not in (None, "auto"):
        raise UsageError(
            "out=trtllm: --kv-cache-dtype is for folders; the cache of a compiled engine is as it was built"
        )
