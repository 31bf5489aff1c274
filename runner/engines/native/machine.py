"""What this machine offers a model: device, number format, memory for the KV cache. Decides, and says why in one line.

Knows torch and the settings, no model code.
"""

from __future__ import annotations

from typing import Any

import torch

from runner.engines.cpus import cpu_flags, usable_cores
from runner.engines.host_memory import free_host_bytes
from runner.engines.native.settings import Settings
from runner.errors import EngineStartFailed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = {**DTYPES, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
_CPU_SHARE = 0.4
"""Of the memory that is free after the load, what the KV cache may take on a CPU; the rest is for other programs."""
_CPU_TOKENS = 65536
"""Tokens in the KV cache on a CPU where nothing is said: more only costs memory there."""


def choose_device(settings: Settings, base_gpu: int, local_rank: int) -> torch.device:
    """The device of one rank. Raises EngineStartFailed where a GPU is asked for that is not there."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device == "cpu" or (settings.device == "auto" and not num_gpus):
        return torch.device("cpu")
    index = base_gpu + local_rank
    if index >= num_gpus:
        found = f"there are {num_gpus} (0 to {num_gpus - 1})" if num_gpus else "torch finds none"
        raise EngineStartFailed(
            f"rank {local_rank} of this node needs GPU {index}, and {found}; lower --base-gpu-id or "
            "--tensor-parallel-size, or use --device cpu"
        )
    return torch.device("cuda", index)


def choose_dtype(settings: Settings, config: dict[str, Any], device: torch.device) -> torch.dtype:
    """The format of weights and activations: what is asked, else the checkpoint's where the device is fast at it."""
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    stored = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if stored == "float32" or stored not in DTYPES:
        return torch.float32
    if device.type == "cuda":
        return DTYPES[stored] if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if is_fast_at_bfloat16() else torch.float32


def is_fast_at_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512_BF16 or AMX, or BF16 on ARM)."""
    return not cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def choose_kv_dtype(settings: Settings, dtype: torch.dtype) -> torch.dtype:
    """The format of K and V in the cache."""
    return dtype if settings.kv_cache_dtype == "auto" else KV_DTYPES[settings.kv_cache_dtype]


def kv_budget(settings: Settings, device: torch.device, peak_bytes: int) -> int:
    """Bytes for the KV cache of one rank. `peak_bytes`: what weights and the largest step took at most (CUDA)."""
    if device.type != "cuda":
        return int(free_host_bytes() * _CPU_SHARE)
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    budget = int(total * settings.gpu_memory_utilization) - others - peak_bytes
    if budget <= 0:
        raise EngineStartFailed(
            f"the model and one step take {peak_bytes / 2**30:.1f} GiB and other programs {others / 2**30:.1f} GiB of "
            f"the GPU's {total / 2**30:.1f} GiB; at --gpu-memory-utilization {settings.gpu_memory_utilization:g} "
            "nothing is left for the KV cache: raise it, --quantize, use more ranks, or take a smaller model"
        )
    return budget


def num_blocks(
    settings: Settings, device: torch.device, budget: int, block_size: int, block_bytes: int, context_length: int
) -> int:
    """Blocks of the KV cache: what is asked, else what the budget holds (on a CPU no more than is of use)."""
    if settings.num_blocks is not None:
        return settings.num_blocks
    fitting = budget // max(1, block_bytes)
    if device.type == "cuda":
        return fitting
    return min(fitting, max(2 * context_length, _CPU_TOKENS) // block_size + 1)


def use_threads(settings: Settings) -> int:
    """Set torch's threads; the number of them."""
    threads = settings.threads or usable_cores()
    torch.set_num_threads(threads)
    return threads
