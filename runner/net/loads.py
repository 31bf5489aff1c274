"""A worker's load as it stands in the discovery, for people to look at; nobody routes by it."""

from __future__ import annotations

import msgspec

from runner.net.addresses import Address

LOADS = "v1/llmrun/load/"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that run and wait; blocks of the KV cache, None where the engine does not say."""

    num_running: int = 0
    num_waiting: int = 0
    kv_used_blocks: int | None = None
    kv_total_blocks: int | None = None


def load_key(address: Address, instance_id: int) -> str:
    """Where it stands, under the worker's lease."""
    return f"{LOADS}{address.path}/{instance_id:x}"


def load_of(stats: dict[str, float], num_open: int, block_size: int) -> Load:
    """`num_open`: answers that are not finished, where the engine counts none itself."""
    total = stats.get("kv_total_tokens")
    return Load(
        num_running=int(stats.get("num_running", num_open)),
        num_waiting=int(stats.get("num_waiting", 0)),
        kv_used_blocks=None if total is None else -(-int(stats.get("kv_used_tokens", 0)) // max(1, block_size)),
        kv_total_blocks=None if total is None else int(total) // max(1, block_size),
    )
