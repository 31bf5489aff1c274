"""Replicas: several equal engines behind one `Engine`; each request goes to the one with the fewest open streams.

Data parallel without lock-step: a dead one ends its own streams only, and is started again while the others serve.
Knows ProcessEngines; what they run is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from runner.engines.process import ProcessEngine
from runner.errors import EngineBusy, EngineDied
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest

_JOIN = "|"
_LARGEST = ("step_s",)


class Replicas:
    """See Engine."""

    def __init__(self, engines: Sequence[ProcessEngine]) -> None:
        self.engines = tuple(engines)
        self.name = engines[0].name
        self.restart_eagerly = True
        self._next = 0

    @property
    def socket_path(self) -> str | None:
        """For `split_path` in other processes; set once started."""
        paths = [engine.socket_path for engine in self.engines]
        return _JOIN.join(path for path in paths if path) if all(paths) else None

    async def start(self) -> EngineInfo:
        """See Engine. All are started at once; if one cannot be, none is left."""
        try:
            infos = await _all(engine.start() for engine in self.engines)
        except BaseException:
            await self.close()
            raise
        for engine in self.engines:
            engine.restart_eagerly = True  # requests go to the others meanwhile
        return self._merged(infos)

    def _merged(self, infos: Sequence[EngineInfo]) -> EngineInfo:
        details = {**infos[0].details, "replicas": len(infos)}
        max_running = sum(info.max_running for info in infos)
        return msgspec.structs.replace(infos[0], max_running=max_running, details=details)

    def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine."""
        return self._choose().generate(request)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """See Engine."""
        return await self._choose().embed(request)

    async def load_adapter(self, name: str, path: str, *, replace: bool = False) -> EngineInfo:
        """See AdapterEngine: all load it, or none keeps it."""
        loading = (engine.load_adapter(name, path, replace=replace) for engine in self.engines)
        results = await asyncio.gather(*loading, return_exceptions=True)
        infos = [result for result in results if isinstance(result, EngineInfo)]
        if len(infos) == len(results):
            return self._merged(infos)
        done = [engine for engine, result in zip(self.engines, results, strict=True) if isinstance(result, EngineInfo)]
        await asyncio.gather(*(engine.unload_adapter(name) for engine in done), return_exceptions=True)
        raise next(result for result in results if isinstance(result, BaseException))

    async def unload_adapter(self, name: str) -> EngineInfo:
        """See AdapterEngine: done when one had it (one that could not load it after a restart has not)."""
        unloading = (engine.unload_adapter(name) for engine in self.engines)
        results = await asyncio.gather(*unloading, return_exceptions=True)
        infos = [result for result in results if isinstance(result, EngineInfo)]
        if not infos:
            raise next(result for result in results if isinstance(result, BaseException))
        return self._merged(infos)

    async def health(self) -> None:
        """See Engine: red when none can serve."""
        errors: list[EngineDied | EngineBusy] = []
        for engine in self.engines:
            try:
                return await engine.health()
            except (EngineDied, EngineBusy) as error:
                errors.append(error)
        raise next((error for error in errors if isinstance(error, EngineBusy)), errors[0])

    async def stats(self) -> dict[str, float]:
        """See Engine: sums; num_replicas is how many serve."""
        total: dict[str, float] = {}
        for numbers in await asyncio.gather(*(engine.stats() for engine in self.engines)):
            for name, value in numbers.items():
                total[name] = max(total.get(name, 0.0), value) if name in _LARGEST else total.get(name, 0.0) + value
        return {**total, "num_replicas": float(sum(engine.is_up for engine in self.engines))}

    async def close(self) -> None:
        """See Engine."""
        await asyncio.gather(*(engine.close() for engine in self.engines))

    def _choose(self) -> ProcessEngine:
        """The least loaded of those that run; in turn among equals. Where none runs, one that will start again."""
        count = len(self.engines)
        order = [self.engines[(self._next + step) % count] for step in range(count)]
        self._next += 1
        return min([engine for engine in order if engine.is_up] or order, key=lambda engine: engine.num_open)


def split_path(path: str) -> list[str]:
    """The sockets that a `socket_path` of Replicas names."""
    return path.split(_JOIN)


async def _all(starts: Iterable[Coroutine[Any, Any, EngineInfo]]) -> list[EngineInfo]:
    """All results, or the first error after the others were cancelled and have ended."""
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
