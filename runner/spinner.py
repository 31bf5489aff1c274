"""A spinner on stderr for what takes a while; nothing where stderr is no terminal, or where it was quick."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from runner.console import colours


@contextlib.asynccontextmanager
async def spinner(message: str, *, delay_s: float = 0.3) -> AsyncIterator[None]:
    """A spinner on stderr while the body runs, if stderr is a terminal and the body takes longer than `delay_s`."""
    if not colours(sys.stderr):
        yield
        return
    task = asyncio.create_task(_spin(message, delay_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _spin(message: str, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    from rich.console import Console

    with Console(stderr=True).status(message):
        await asyncio.Event().wait()
