from __future__ import annotations

import asyncio
import os
import signal

import pytest

from model_cards.card import ModelCard
from runner.catalog import Catalog
from runner.errors import EngineDied
from runner.frontends.base import FrontendSpec
from runner.frontends.none import NoneFrontend
from runner.options import RunOptions


def spec(**options: int) -> FrontendSpec:
    return FrontendSpec(name="none", options=RunOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_waits_for_a_signal(number: signal.Signals) -> None:
    task = asyncio.create_task(NoneFrontend(spec()).run(Catalog()))
    done, _ = await asyncio.wait((task,), timeout=0.05)
    assert not done
    os.kill(os.getpid(), number)
    assert await asyncio.wait_for(task, 10) == 0


async def test_cancelling_ends_it() -> None:
    task = asyncio.create_task(NoneFrontend(spec()).run(Catalog()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class LostService:
    """Of a node whose engine has died."""

    card = ModelCard(name="lost", source="lost")

    async def health(self) -> None:
        raise EngineDied("rank 0 is gone")


async def test_a_follower_that_has_lost_its_engine_ends_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    catalog = Catalog()
    catalog.add(LostService())  # type: ignore[arg-type]
    assert await asyncio.wait_for(NoneFrontend(spec(num_nodes=2, node_rank=1)).run(catalog), 10) == 1
    assert "rank 0 is gone" in capsys.readouterr().err
