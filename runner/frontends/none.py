"""in=none: the engine runs, nothing is exposed; waits for SIGINT or SIGTERM (followers of a multi-node engine)."""

from __future__ import annotations

import asyncio
import signal

from runner.catalog import Catalog
from runner.frontends.base import FrontendSpec

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class NoneFrontend:
    """Waits."""

    def __init__(self, spec: FrontendSpec) -> None:
        self._spec = spec

    async def run(self, catalog: Catalog) -> int:
        """Returns 0 after the first signal; the launcher closes the engine."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for number in _SIGNALS:
            loop.add_signal_handler(number, stopped.set)
        try:
            await stopped.wait()
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        return 0
