"""Settings: what the user asked of llama.cpp, checked. Plain data; knows no library."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from runner.engines.base import EngineSpec
from runner.errors import UsageError

CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
"""ggml_type numbers (ggml.h) that llama.cpp takes for K and V."""

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]


class Extra(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of --extra-engine-args. None is llama.cpp's own default."""

    n_batch: int = 512
    """Tokens of one step at most."""
    n_ubatch: int = 512
    """Tokens that are computed at once within a step."""
    prefill_chunk: int = 256
    """Prompt tokens of one step while other requests decode: smaller is smoother, larger is faster."""
    kv_cells: int | None = None
    """Tokens in the KV cache, shared by all requests."""
    prefix_cache: bool = True
    cache_type_k: CacheType | None = None
    """None: f32 when all weights are f32 (who takes such a file wants exact numbers), else f16."""
    cache_type_v: CacheType | None = None
    flash_attn: Literal["auto", "on", "off"] | bool = "auto"
    mmap: bool | None = None
    mlock: bool = False
    check_tensors: bool = False
    use_extra_bufts: bool | None = None
    """Repack weights for this CPU; None: yes, unless the smoke test of the library crashed with it."""
    offload_kqv: bool = True
    op_offload: bool = True
    swa_full: bool = True
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    threads_batch: int | None = None

    def flash_attn_type(self, scores_bytes: int, *, is_quantized: bool) -> int:
        """llama_flash_attn_type: -1 is llama.cpp's choice, 0 off, 1 on.

        `auto` is off for small models whose weights are exact: flash attention on a CPU is a quarter faster, but rounds
        more (it parts from float32 goldens at margins of 0.002, plain attention does not; q8_0 weights part anyway).
        """
        if self.flash_attn == "auto":
            can_be_off = not is_quantized and self.cache_type_v in ("f32", "f16", "bf16")
            return 0 if can_be_off and scores_bytes <= _SMALL_SCORES_BYTES else -1
        return int(self.flash_attn in ("on", True))

    @property
    def load_mode(self) -> int:
        """llama_load_mode: -1 is automatic, bit 0 mmap, bit 1 mlock."""
        if self.mmap is None and not self.mlock:
            return -1
        return (self.mmap is not False) + 2 * self.mlock


def resolve_cache_types(extra: Extra, *, is_all_f32: bool) -> Extra:
    """The same with the types of the KV cache decided."""
    automatic: CacheType = "f32" if is_all_f32 else "f16"
    return msgspec.structs.replace(
        extra, cache_type_k=extra.cache_type_k or automatic, cache_type_v=extra.cache_type_v or automatic
    )


def parse_extra(extra: dict[str, Any]) -> Extra:
    """Check --extra-engine-args. Raises UsageError that names the key and what is allowed."""
    allowed = Extra.__struct_fields__
    unknown = sorted(set(extra) - set(allowed))
    if unknown:
        raise UsageError(f"out=llamacpp: unknown engine argument {unknown[0]!r}; allowed are {', '.join(allowed)}")
    try:
        parsed = msgspec.convert(extra, Extra)
    except msgspec.ValidationError as problem:
        raise UsageError(f"out=llamacpp: engine arguments: {problem}") from None
    for name in ("n_batch", "n_ubatch", "prefill_chunk", "kv_cells", "threads_batch"):
        _check_positive(name, getattr(parsed, name))
    return parsed


def check_spec(spec: EngineSpec) -> Extra:
    """Refuse what out=llamacpp cannot honour. Raises UsageError."""
    options = spec.options
    for name in ("tensor_parallel_size", "num_nodes"):
        if getattr(options, name) != 1:
            raise UsageError(f"out=llamacpp runs on one machine and splits by layers; --{_flag(name)} must be 1")
    if options.kv_cache_block_size is not None:
        raise UsageError("out=llamacpp has a KV cache without blocks; leave --kv-cache-block-size out")
    if spec.argument:
        raise UsageError(f"out=llamacpp takes no argument, got {spec.argument!r}; the model is named after it")
    if spec.tail:
        raise UsageError(f"out=llamacpp takes nothing after --, got {' '.join(spec.tail)}; use --extra-engine-args")
    for name in ("context_length", "max_running", "threads"):
        _check_positive(name, getattr(options, name))
    if options.max_running is not None and options.max_running > MAX_SEQUENCES:
        raise UsageError(f"out=llamacpp: --max-running {options.max_running} is more than {MAX_SEQUENCES}")
    return parse_extra(options.extra)


_SMALL_SCORES_BYTES = 128 * 2**20
MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ of llama.cpp."""


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"out=llamacpp: --{_flag(name)} must be at least 1, got {value}")


def _flag(name: str) -> str:
    return name.replace("_", "-")
