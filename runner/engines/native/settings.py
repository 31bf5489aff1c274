"""Settings: what the user asked of out=native, checked. Plain data, torch-free: launcher and child read it."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from runner.engines.base import EngineSpec
from runner.engines.refusals import refuse_words
from runner.errors import UsageError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
KvDtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]
Device = Literal["auto", "cpu", "cuda"]
Quantize = Literal["int8", "int4"]
Backend = Literal["auto", "torch", "cpu", "triton"]
Implementation = Literal["auto", "native", "transformers"]

_CHOICES = {
    "dtype": Dtype, "quantize": Quantize, "kv_cache_dtype": KvDtype, "device": Device, "backend": Backend,
    "implementation": Implementation,
}  # fmt: skip
_FLAGS = ("dtype", "quantize", "kv_cache_dtype", "device", "gpu_memory_utilization", "max_batched_tokens",
          "max_running", "threads")  # fmt: skip
MAX_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}
BLOCK_SIZE = {"cpu": 16, "cuda": 64}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything decided that needs no look at the machine; None is decided in the child. Its names are the keys of
    --extra-engine-args: flags by their long names, and what no flag says."""

    dtype: Dtype = "auto"
    quantize: Quantize | None = None
    kv_cache_dtype: KvDtype = "auto"
    device: Device = "auto"
    gpu_memory_utilization: float = 0.9
    max_batched_tokens: int | None = None
    max_running: int = 256
    """Requests at once."""
    block_size: int | None = None
    num_blocks: int | None = None
    """Blocks of the KV cache; None: what memory allows."""
    prefix_cache: bool = True
    backend: Backend = "auto"
    """Which kernels: torch's own, our C++ (cpu), our Triton (cuda)."""
    cuda_graphs: bool = True
    implementation: Implementation = "auto"
    """transformers: its modules with our attention, also where a family file of ours exists."""
    threads: int | None = None


def read_settings(spec: EngineSpec) -> Settings:
    """Flags, and --extra-engine-args on top. Raises UsageError naming the option, what was got and what is allowed."""
    options, allowed = spec.options, Settings.__struct_fields__
    _refuse(spec)
    unknown = sorted(set(options.extra) - set(allowed))
    if unknown:
        raise UsageError(f"out=native: unknown engine argument {unknown[0]!r}; allowed are {', '.join(allowed)}")
    flags = {name: getattr(options, name) for name in _FLAGS} | {"block_size": options.kv_cache_block_size}
    settings = _convert({name: value for name, value in {**flags, **options.extra}.items() if value is not None})
    _check(settings)
    return settings


def _convert(values: dict[str, Any]) -> Settings:
    for name, choice in _CHOICES.items():
        if name in values and values[name] not in get_args(choice):
            said = f"--{name.replace('_', '-')}" if name in _FLAGS else name
            raise UsageError(f"out=native: {said}: got {values[name]!r}; allowed: {', '.join(get_args(choice))}")
    try:
        return msgspec.convert(values, Settings)
    except msgspec.ValidationError as problem:
        raise UsageError(f"out=native: engine arguments: {problem}") from None


def _check(settings: Settings) -> None:
    for name in ("max_batched_tokens", "max_running", "block_size", "num_blocks", "threads"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UsageError(f"out=native: {name} must be at least 1, got {value}")
    if not 0.05 <= settings.gpu_memory_utilization <= 1.0:
        raise UsageError(
            f"out=native: --gpu-memory-utilization must be from 0.05 to 1, got {settings.gpu_memory_utilization:g}"
        )
    if settings.block_size is not None and settings.block_size & (settings.block_size - 1):
        raise UsageError(f"out=native: --kv-cache-block-size must be a power of two, got {settings.block_size}")


def _refuse(spec: EngineSpec) -> None:
    options = spec.options
    refuse_words(spec)
    if options.gpu_layers is not None:
        raise UsageError("out=native puts all layers on one device; leave --gpu-layers out (see --device)")
    if options.adapters:
        raise UsageError("out=native runs no LoRA adapters yet; out=llamacpp does, with GGUF files")
    if options.tensor_parallel_size % options.num_nodes:
        raise UsageError(
            f"--tensor-parallel-size counts the ranks of all nodes: {options.tensor_parallel_size} cannot be divided "
            f"among --num-nodes {options.num_nodes}"
        )
    if options.num_nodes > 1 and options.leader_addr is None:
        raise UsageError("--num-nodes above 1 needs --leader-addr HOST:PORT, the same on every node (node 0 listens)")
