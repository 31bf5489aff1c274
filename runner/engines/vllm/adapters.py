"""Adapters: the LoRA adapters of one EngineCore, by name, and which new ones there is room for. Outlives a restart.

Knows names, numbers and folders; telling EngineCore of them is link.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from runner.engines.vllm.adapter_folder import read_rank
from runner.engines.vllm.settings import Adapter, AdapterRoom
from runner.errors import RequestError, UnknownAdapter

_MAX_NAME_LEN = 256
_NAME, _PATH = "lora_name", "lora_path"
"""Fields of the request, for its errors."""


class Adapters:
    """Those of --lora from the start, and those that are loaded later, while there is room."""

    def __init__(self, fixed: Iterable[Adapter], room: AdapterRoom | None = None) -> None:
        self._loaded = {adapter.name: adapter for adapter in fixed}
        self._fixed = frozenset(self._loaded.values())
        self._last_id = len(self._loaded)
        self._room = room
        self.lock = asyncio.Lock()
        """Held by who changes them."""

    @property
    def may_grow(self) -> bool:
        """Whether others may be loaded."""
        return self._room is not None and self._room.may_grow

    def is_fixed(self, adapter: Adapter) -> bool:
        """Whether --lora named it: the engine does not run without it."""
        return adapter in self._fixed

    def names(self) -> list[str]:
        """Oldest first."""
        return list(self._loaded)

    def all(self) -> list[Adapter]:
        """Oldest first."""
        return list(self._loaded.values())

    def find(self, name: str, field: str = "adapter") -> Adapter:
        """Raises UnknownAdapter."""
        if name not in self._loaded:
            known = ", ".join(self._loaded) or "none"
            raise UnknownAdapter(f"there is no adapter {name!r}; loaded are {known}", field=field)
        return self._loaded[name]

    async def admit(self, name: str, path: str, *, replace: bool, num_leaving: int) -> Adapter:
        """What `name` would be, not loaded yet; `num_leaving` old ones still have a place. Raises RequestError."""
        if not name or len(name) > _MAX_NAME_LEN:
            raise RequestError(f"lora_name: got {len(name)} characters; allowed are 1 to {_MAX_NAME_LEN}", field=_NAME)
        if name in self._loaded and not replace:
            message = f"the adapter {name!r} is loaded already; unload it, or replace it with load_inplace"
            raise RequestError(message, field=_NAME)
        assert self._room is not None
        if len(self._loaded) + num_leaving >= self._room.most:
            leaving = f", {num_leaving} that are unloaded still run" if num_leaving else ""
            raise RequestError(
                f"there is no room for another adapter: {len(self._loaded)} are loaded{leaving}, and {self._room.most} "
                f"is the most; unload one, or start with more max_loras (--extra-engine-args)",
                field=_NAME,
            )
        folder, rank = await asyncio.to_thread(read_rank, path, self._room.model)
        if rank > self._room.max_rank:
            raise RequestError(
                f"the adapter in {folder} has rank {rank}, the most here is {self._room.max_rank}; "
                f"start with a larger max_lora_rank (--extra-engine-args)",
                field=_PATH,
            )
        self._last_id += 1
        return Adapter(name, folder, self._last_id)

    def put(self, adapter: Adapter) -> Adapter | None:
        """It is loaded; returns the one whose name it took."""
        old = self._loaded.pop(adapter.name, None)
        self._loaded[adapter.name] = adapter
        return old

    def drop(self, name: str) -> None:
        """It is no longer offered."""
        del self._loaded[name]
