"""Settings: what the user asked of out=mistralrs, as the arguments of mistral.rs' Runner and of its `Which`.

Plain data; launcher and child both read it. Names are those of mistralrs 0.9 (its __init__.pyi).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from model_cards.gguf_shards import find_shards
from runner.engines.base import EngineSpec
from runner.engines.refusals import refuse_words
from runner.errors import UsageError

DEFAULT_MAX_RUNNING = 32
"""As mistral.rs."""
_DTYPES = {
    "bfloat16": "BF16", "bf16": "BF16", "float16": "F16", "half": "F16", "f16": "F16", "fp16": "F16",
    "float32": "F32", "float": "F32", "f32": "F32", "fp32": "F32",
}  # fmt: skip
"""--dtype -> a name of ModelDType."""
_KV_DTYPES = {"fp8": "F8E4M3", "fp8_e4m3": "F8E4M3", "f8e4m3": "F8E4M3"}
"""--kv-cache-dtype -> a name of PagedCacheType."""
_RUNNER_ARGUMENTS = frozenset(
    ("no_kv_cache", "prefix_cache_n", "mtp_model", "mtp_n_predict", "num_device_layers", "in_situ_quant",
     "memory_goal", "pa_blk_size", "no_paged_attn", "paged_attn", "seed", "token_source")
)  # fmt: skip
"""Of Runner; what is left out (templates, tools, search, agents) is llmrun's own work or nobody's."""
_WHICH_ARGUMENTS = frozenset(
    ("topology", "imatrix", "calibration_file", "hf_cache_path", "tokenizer_json", "write_uqff", "from_uqff")
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How mistral.rs is started."""

    kind: str
    """Of Which: `Plain` or `GGUF`."""
    which: dict[str, Any]
    arguments: dict[str, Any]
    """Of Runner."""
    env: dict[str, str]
    max_running: int
    dtype: str | None = None
    """A name of ModelDType; None is mistral.rs' choice."""
    kv_dtype: str | None = None
    """A name of PagedCacheType."""


def read_settings(spec: EngineSpec) -> Settings:
    """Flags, and --extra-engine-args (mistral.rs' own names) on top. Raises UsageError for what cannot be honoured."""
    _refuse(spec)
    options = spec.options
    max_running = options.max_running or DEFAULT_MAX_RUNNING
    arguments: dict[str, Any] = {"max_seqs": max_running}
    wishes = {
        "seed": options.seed,
        "in_situ_quant": options.quantize,
        "pa_blk_size": options.kv_cache_block_size,
        "memory_goal": options.gpu_memory_utilization,
    }
    arguments.update({name: value for name, value in wishes.items() if value is not None})
    kind, which = _which(spec)
    for key, value in options.extra.items():
        name = key.lstrip("-").replace("-", "_")
        if name not in _RUNNER_ARGUMENTS | _WHICH_ARGUMENTS:
            known = ", ".join(sorted(_RUNNER_ARGUMENTS | _WHICH_ARGUMENTS))
            raise UsageError(f"out=mistralrs: --extra-engine-args has {key!r}; allowed are {known}")
        (arguments if name in _RUNNER_ARGUMENTS else which)[name] = value
    return Settings(
        kind=kind,
        which=which,
        arguments=arguments,
        env=_environment(options.threads),
        max_running=max_running,
        dtype=_named(_DTYPES, "--dtype", options.dtype),
        kv_dtype=_named(_KV_DTYPES, "--kv-cache-dtype", options.kv_cache_dtype),
    )


def _which(spec: EngineSpec) -> tuple[str, dict[str, Any]]:
    """The kind of model and where it is."""
    if spec.card.path is None:
        raise UsageError(f"out=mistralrs needs the weights of {spec.card.name} on this machine; name a file or folder")
    path = Path(spec.card.path).absolute()
    if spec.card.kind != "gguf":
        return "Plain", {"model_id": str(path)}
    files = [shard.name for shard in find_shards(path)[1]]
    which: dict[str, Any] = {"quantized_model_id": str(path.parent), "quantized_filename": files}
    tokenizer = spec.card.tokenizer
    if tokenizer is not None and tokenizer.kind == "hf":
        which["tokenizer_json"] = tokenizer.path
    return "GGUF", which


def _environment(threads: int | None) -> dict[str, str]:
    """Variables that the user has set win."""
    env = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        env["RAYON_NUM_THREADS"] = str(threads)
    return {name: value for name, value in env.items() if name not in os.environ}


def _named(names: dict[str, str], flag: str, value: str | None) -> str | None:
    if value is None or value == "auto":
        return None
    if value not in names:
        raise UsageError(f"out=mistralrs: {flag} must be auto or one of {', '.join(names)}, got {value!r}")
    return names[value]


def _refuse(spec: EngineSpec) -> None:
    options = spec.options
    refuse_words(spec)
    if options.adapters:
        raise UsageError("out=mistralrs: --lora is not passed on; out=llamacpp and out=vllm honour it")
    if options.gpu_layers is not None:
        raise UsageError("out=mistralrs places layers itself; leave --gpu-layers out (or use out=llamacpp)")
    if options.tensor_parallel_size > 1 or options.num_nodes > 1:
        raise UsageError("out=mistralrs runs one process on one machine; out=vllm and out=sglang run on several GPUs")
