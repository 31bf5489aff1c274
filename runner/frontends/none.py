"""in=none: the engine runs, nothing is exposed; waits for SIGINT or SIGTERM (followers of a multi-node engine)."""

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
        self._spec = spec

    async def run(self, catalog: Catalog) -> int:
        """Returns 0 after the first signal; 1 when this node of several has lost its engine. The launcher closes it."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for number in _SIGNALS:
            loop.add_signal_handler(number, stopped.set)
        try:
            if self._spec.options.num_nodes > 1:
                return await self._watch(catalog, stopped)
            await stopped.wait()
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        return 0

    async def _watch(self, catalog: Catalog, stopped: asyncio.Event) -> int:
        """A node whose engine is gone can serve nothing more: node 0 must start it again with all others."""
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
