"""How large the KV cache becomes: a rule over numbers.

The context of one request is the model's, or what the user asked for; it shrinks only when memory demands it, and the
plan says so. Where memory holds a whole context for each request that runs, each has cells of its own (`split`) and
attention looks at no others. Else all share one pool, which is no limit for one request alone: when it is full, idle
prefixes go first and the youngest request waits.
"""

from __future__ import annotations

import msgspec

from runner.errors import EngineStartFailed

_KV_SHARE = 0.5
"""Of the memory that is left beside the weights."""
_SMALLEST_CONTEXT = 512
_UNKNOWN_CONTEXT = 4096
_ALIGNMENT = 256

_BYTES_PER_VALUE = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}


class KvPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request, cells of all, and a sentence when a limit was forced on the user."""

    context_length: int
    num_cells: int
    is_split: bool = False
    """`num_cells` is a whole number of contexts, one for each running request."""
    note: str = ""


def bytes_per_value(cache_type: str) -> float:
    """Size of one value in the KV cache, block scales included."""
    return _BYTES_PER_VALUE[cache_type]


def plan_kv(
    *,
    asked: int | None,
    train_context: int,
    max_running: int,
    bytes_per_token: int,
    free_bytes: int,
    num_cells: int | None = None,
) -> KvPlan:
    """Decide. `free_bytes` is what is left beside the weights. Raises EngineStartFailed for what cannot fit."""
    affordable = int(free_bytes * _KV_SHARE / bytes_per_token)
    if asked is not None:
        possible = int(free_bytes * 0.95 / bytes_per_token)
        if asked > possible:
            raise EngineStartFailed(
                f"a context of {asked:,} tokens needs {_gib(asked * bytes_per_token)} of KV cache; "
                f"{_gib(free_bytes)} are free",
                hint=f"start with --context-length {max(1, affordable)}, or with a smaller cache_type_k / cache_type_v",
            )
        context, note = asked, ""
    else:
        context, note = _automatic_context(train_context, affordable, bytes_per_token)
    if num_cells is None and _aligned(context) * max_running <= affordable:
        return KvPlan(context_length=context, num_cells=_aligned(context) * max_running, is_split=True, note=note)
    if num_cells is None:
        num_cells = max(context, min(context * max_running, affordable))
    if num_cells < context:
        raise EngineStartFailed(f"kv_cells={num_cells} is less than the context of one request, {context} tokens")
    return KvPlan(context_length=context, num_cells=_aligned(num_cells), note=note)


def _automatic_context(train_context: int, affordable: int, bytes_per_token: int) -> tuple[int, str]:
    wanted = train_context or _UNKNOWN_CONTEXT
    if wanted <= affordable:
        return wanted, ""
    context = max(_SMALLEST_CONTEXT, affordable // _ALIGNMENT * _ALIGNMENT)
    if context >= wanted:
        return wanted, ""
    note = (
        f"context is {context:,} tokens, not the model's {wanted:,}: all of it would need "
        f"{_gib(wanted * bytes_per_token)} of KV cache; --context-length chooses"
    )
    return context, note


def _aligned(num_cells: int) -> int:
    """llama.cpp rounds up to this anyway."""
    return -(-num_cells // _ALIGNMENT) * _ALIGNMENT


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
