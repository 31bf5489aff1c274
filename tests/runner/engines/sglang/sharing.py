"""One engine for many checks of the conformance suite: a start takes long, and most checks need none of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from runner.engines.process import ProcessEngine
from tests.conformance import CHECKS, Check, EngineCase

LAST = [check for check in CHECKS if check.__name__ == "close_is_safe_and_ends_streams"]
"""It closes its engine."""
LIMITED = [check for check in CHECKS if getattr(check, "limits", {})]
SHARED = [check for check in CHECKS if check not in LAST + LIMITED] + LAST


class Engines:
    """Started when they are asked for, one for each set of limits."""

    def __init__(self, make: Callable[..., ProcessEngine]) -> None:
        self._make = make
        self._engines: dict[str, ProcessEngine] = {}

    async def get(self, **limits: int) -> ProcessEngine:
        """A running engine with these limits."""
        name = str(sorted(limits.items()))
        if name not in self._engines:
            self._engines[name] = self._make(**limits)
            await self._engines[name].start()
        return self._engines[name]

    async def run(self, check: Check, case: EngineCase) -> None:
        """Run one check on the engine that it wants."""
        assert not getattr(check, "needs", set()) - case.honours
        engine: Any = await self.get(**getattr(check, "limits", {}))
        async with asyncio.timeout(120):
            await check(engine, engine.info, case)

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()
