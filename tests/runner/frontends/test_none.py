from __future__ import annotations

import asyncio
import os
import signal

import pytest

from runner.catalog import Catalog
from runner.frontends.base import FrontendSpec
from runner.frontends.none import NoneFrontend


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_waits_for_a_signal(number: signal.Signals) -> None:
    task = asyncio.create_task(NoneFrontend(FrontendSpec(name="none")).run(Catalog()))
    done, _ = await asyncio.wait((task,), timeout=0.05)
    assert not done
    os.kill(os.getpid(), number)
    assert await asyncio.wait_for(task, 10) == 0


async def test_cancelling_ends_it() -> None:
    task = asyncio.create_task(NoneFrontend(FrontendSpec(name="none")).run(Catalog()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
