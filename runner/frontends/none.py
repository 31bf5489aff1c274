"""in=none: the engine runs, nothing is exposed; waits for SIGINT or SIGTERM, or for the end of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from runner.catalog import Catalog
from runner.errors import EngineBusy, EngineDied
from runner.frontends.base import FrontendSpec

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WATCH_S = 0.5


class NoneFrontend:
    """Waits."""

    def __init__(self, spec: FrontendSpec) -> None:
        """See Frontend; there is nothing to choose."""

    async def run(self, catalog: Catalog) -> int:
        """Returns 0 after the first signal; 1 when the engine is lost. The launcher closes it."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for number in _SIGNALS:
            loop.add_signal_handler(number, stopped.set)
        try:
            return await self._watch(catalog, stopped)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def _watch(self, catalog: Catalog, stopped: asyncio.Event) -> int:
        """No request comes here that would start a dead engine again; of several nodes, node 0 must."""
        while not stopped.is_set():
            try:
                await catalog.default().health()
            except EngineDied as death:
                sys.stderr.write(f"{death}\n")
                return 1
            except EngineBusy:
                pass
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), _WATCH_S)
        return 0
