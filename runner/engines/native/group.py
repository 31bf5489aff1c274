"""The torch.distributed group of an engine's ranks: rank 0's store, and each rank's place in the group.

Ports are chosen by the system, so that engines on one machine never meet. Knows no models.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from runner.engines.base import EngineOptions
from runner.engines.native.parallel import Parallel

_LOOPBACK = "127.0.0.1"


def open_store(size: int, options: EngineOptions) -> Any:
    """Rank 0's TCPStore; it must live as long as the ranks do."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = (options.leader_addr or "").rpartition(":")[0] if options.num_nodes > 1 else _LOOPBACK
    return TCPStore(host, 0, size, is_master=True, wait_for_workers=False)


def join_group(rank: int, size: int, address: tuple[str, int] | None, device: torch.device, store: Any) -> Parallel:
    """This rank's place among the others; NCCL between GPUs, gloo between CPUs. Blocks until all have come.

    `store` is rank 0's own; the others find it at `address`.
    """
    if size == 1:
        return Parallel.single()
    assert address is not None
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    if address[0] == _LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = store or TCPStore(address[0], address[1], size, is_master=False)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return Parallel(rank, size)
