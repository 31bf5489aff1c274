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


class SoundService:
    """Of an engine that runs."""

    card = ModelCard(name="sound", source="sound")

    async def health(self) -> None:
        """It does."""


class LostService(SoundService):
    """Of an engine that has died."""

    async def health(self) -> None:
        raise EngineDied("rank 0 is gone")


def catalog_of(service: SoundService) -> Catalog:
    catalog = Catalog()
    catalog.add(service)  # type: ignore[arg-type]
    return catalog


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_waits_for_a_signal(number: signal.Signals) -> None:
    task = asyncio.create_task(NoneFrontend(spec()).run(catalog_of(SoundService())))
    done, _ = await asyncio.wait((task,), timeout=0.05)
    assert not done
    os.kill(os.getpid(), number)
    assert await asyncio.wait_for(task, 10) == 0


async def test_cancelling_ends_it() -> None:
    task = asyncio.create_task(NoneFrontend(spec()).run(catalog_of(SoundService())))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("options", [{}, {"num_nodes": 2, "node_rank": 1}])
async def test_who_has_lost_the_engine_ends_with_one(
    capsys: pytest.CaptureFixture[str], options: dict[str, int]
) -> None:
    """Nobody asks here, so nobody would start it again: it stood there dead until somebody looked."""
    assert await asyncio.wait_for(NoneFrontend(spec(**options)).run(catalog_of(LostService())), 10) == 1
    assert "rank 0 is gone" in capsys.readouterr().err
