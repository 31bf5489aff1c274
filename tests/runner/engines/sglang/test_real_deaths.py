"""Deaths of the real SGLang's processes and of the launcher (make test-sglang): errors soon, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from runner.engines.process import ProcessEngine
from runner.errors import EngineDied
from tests.runner.engines.node_program import family_of, left, named
from tests.runner.engines.sglang.real import PYTHON, answer, is_right, make

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PYTHON is None, reason="no sglang: llmrun engines install sglang --cpu"),
]
BOUND_S = 10.0


async def kill_under_streams(engine: ProcessEngine, victim: str) -> float:
    """Seconds from a kill -9 to the end of the last of 32 streams, all of them by EngineDied."""

    async def stream() -> float:
        with pytest.raises(EngineDied):
            await answer(engine, [5] * 20, max_tokens=900)
        return time.monotonic()

    tasks = [asyncio.create_task(stream()) for _ in range(32)]
    await asyncio.sleep(2.0)
    assert engine.pid is not None and not any(task.done() for task in tasks)
    family = family_of(engine.pid)
    process = family[0] if victim == "engine" else named(family, victim)
    killed_at = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    ends = await asyncio.gather(*tasks)
    assert not left(family, 2.0)
    return max(ends) - killed_at


async def test_any_death_ends_every_stream_and_the_next_request_starts_it_again() -> None:
    engine = make()
    try:
        await engine.start()
        for deaths, victim in enumerate(("sglang::scheduler", "sglang::detokenizer", "engine"), 1):
            assert await kill_under_streams(engine, victim) < BOUND_S
            async with asyncio.timeout(300):
                await engine.start()
            assert await is_right(engine)
            assert engine.num_restarts == deaths
    finally:
        await engine.close()


_LAUNCHER = """
import asyncio
from tests.runner.engines.sglang.real import make
async def main():
    engine = make()
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_nothing_is_left_five_seconds_after_the_launcher_is_killed() -> None:
    env = {**os.environ, "LLMRUN_SGLANG_PYTHON": str(PYTHON)}
    launcher = subprocess.Popen([sys.executable, "-c", _LAUNCHER], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert launcher.stdout is not None
        family = family_of(int(launcher.stdout.readline()))
        assert len(family) > 3
    finally:
        launcher.kill()
        launcher.communicate()
    assert not left(family, 5.0)
