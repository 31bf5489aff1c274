"""ProcessEngine: streams over a real child process, and everything that can go wrong with one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from model_cards.card import ModelCard
from runner.engines.base import EngineSpec
from runner.engines.process import ProcessEngine
from runner.errors import EngineBusy, EngineDied, EngineFailed, RequestError, UnsupportedField
from runner.types import EmbedRequest, TokenDelta, TokenRequest
from tests.runner.engines.conftest import ROOT, MakeEngine

BOUND_S = 10.0


def ask(max_tokens: int = 8, token: int = 1) -> TokenRequest:
    return TokenRequest(id="r", token_ids=[token], max_tokens=max_tokens)


async def collect(engine: ProcessEngine, request: TokenRequest) -> list[TokenDelta]:
    async with asyncio.timeout(BOUND_S):
        async with aclosing(engine.generate(request)) as stream:
            return [delta async for delta in stream]


def ids_of(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


async def is_gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_many_streams_get_their_own_ids(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter")
    await engine.start()
    answers = await asyncio.gather(*[collect(engine, ask(at + 1)) for at in range(64)])
    assert [ids_of(deltas) for deltas in answers] == [list(range(1, at + 2)) for at in range(64)]


async def test_a_slow_reader_gets_merged_deltas(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter", extra={"step_s": 0.0})
    await engine.start()
    deltas: list[TokenDelta] = []
    async with aclosing(engine.generate(ask(2000))) as stream:
        async for delta in stream:
            deltas.append(delta)
            await asyncio.sleep(0.02)
    assert ids_of(deltas) == list(range(1, 2001))
    assert len(deltas) < 1000


async def test_errors_of_add_reach_their_stream_only(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter")
    await engine.start()
    other = asyncio.create_task(collect(engine, ask(200)))
    with pytest.raises(RequestError, match="13 brings bad luck") as caught:
        await collect(engine, ask(token=13))
    assert caught.value.field == "prompt"
    with pytest.raises(EngineFailed, match="ValueError: a bug of add"):
        await collect(engine, ask(token=14))
    assert len(ids_of(await other)) == 200


async def test_an_error_output_ends_one_stream(make_engine: MakeEngine) -> None:
    engine = make_engine("OneFails")
    await engine.start()
    results = await asyncio.gather(collect(engine, ask(token=5)), collect(engine, ask()), return_exceptions=True)
    assert isinstance(results[0], EngineFailed)
    assert str(results[0]) == "no room for five"
    assert isinstance(results[1], list)


async def test_a_lost_request_is_an_error_not_a_hang(make_engine: MakeEngine) -> None:
    engine = make_engine("Loses")
    await engine.start()
    with pytest.raises(EngineFailed, match="lost this request"):
        await collect(engine, ask())


async def test_an_error_in_a_step_fails_all_and_the_next_request_starts_again(make_engine: MakeEngine) -> None:
    engine = make_engine("StepFails")
    await engine.start()
    results = await asyncio.gather(*[collect(engine, ask()) for _ in range(4)], return_exceptions=True)
    assert all(isinstance(result, EngineFailed) and "third step" in str(result) for result in results)
    assert ids_of(await collect(engine, ask(2))) == [1, 2]
    assert (await engine.stats())["num_restarts"] == 1


async def test_max_queue_is_exact(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter", extra={"step_s": 0.02}, options={"max_running": 2, "max_queue": 3})
    await engine.start()
    results = await asyncio.gather(*[collect(engine, ask(5)) for _ in range(9)], return_exceptions=True)
    busy = [result for result in results if isinstance(result, EngineBusy)]
    assert len(busy) == 4
    assert busy[0].retry_after_s > 0
    assert len(ids_of(await collect(engine, ask(5)))) == 5


async def test_cancel_reaches_a_step_that_runs(make_engine: MakeEngine) -> None:
    engine = make_engine("Slow")
    await engine.start()
    task = asyncio.create_task(collect(engine, ask()))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait({task})
    async with asyncio.timeout(BOUND_S):
        while (await engine.stats())["num_running"] or (await engine.stats())["step_s"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_embed_is_refused_without_the_capability(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter")
    await engine.start()
    with pytest.raises(UnsupportedField):
        await engine.embed(EmbedRequest(id="e", inputs=[[1]]))


async def test_another_process_of_the_launcher_may_attach(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter")
    await engine.start()
    assert engine.socket_path is not None
    assert Path(engine.socket_path).parent.stat().st_mode & 0o777 == 0o700
    guest = ProcessEngine.attach(engine.socket_path, EngineSpec(name="g", card=ModelCard(name="m", source="m")))
    assert (await guest.start()).name == "counter"
    both = await asyncio.gather(collect(guest, ask(50)), collect(engine, ask(60)))
    assert [len(ids_of(deltas)) for deltas in both] == [50, 60]
    task = asyncio.create_task(collect(guest, ask(100_000)))
    await asyncio.sleep(0.05)
    await guest.close()
    await asyncio.wait({task})
    assert isinstance(task.exception(), EngineDied)
    async with asyncio.timeout(BOUND_S):
        while (await engine.stats())["num_running"]:  # noqa: ASYNC110 (the guest's stream is cancelled)
            await asyncio.sleep(0.02)


async def test_an_attached_engine_follows_a_restart(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter", restart_eagerly=True)
    await engine.start()
    assert engine.socket_path is not None
    guest = ProcessEngine.attach(engine.socket_path, EngineSpec(name="g", card=ModelCard(name="m", source="m")))
    await guest.start()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    await asyncio.sleep(0.1)
    assert len(await collect(guest, ask(3))) >= 1
    await guest.close()


# death


async def test_kill_9_of_the_child_under_32_streams(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter", extra={"step_s": 0.005})
    await engine.start()
    pid = engine.pid
    assert pid is not None
    tasks = [asyncio.create_task(collect(engine, ask(100_000))) for _ in range(32)]
    await asyncio.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    await asyncio.wait(tasks, timeout=BOUND_S)
    assert time.monotonic() - killed_at < 2.0
    assert all(isinstance(task.exception(), EngineDied) for task in tasks)
    assert "signal 9 (SIGKILL)" in str(tasks[0].exception())
    with pytest.raises(EngineDied):
        await engine.health()
    answers = await asyncio.gather(*[collect(engine, ask(5)) for _ in range(8)])
    assert all(ids_of(deltas) == [1, 2, 3, 4, 5] for deltas in answers)
    assert (await engine.stats())["num_restarts"] == 1, "eight requests share one restart"
    await engine.health()
    assert await is_gone(pid, 1.0)


async def test_restarts_are_bounded(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter", options={"max_restarts": 1})
    await engine.start()
    for _ in range(2):
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        async with asyncio.timeout(BOUND_S):
            while True:
                try:
                    await engine.health()
                except EngineDied:
                    break
                await asyncio.sleep(0.01)
        with contextlib.suppress(EngineDied):
            await collect(engine, ask(2))
    for _ in range(3):
        with pytest.raises(EngineDied, match=r"not started again \(1 restarts allowed\)") as caught:
            await collect(engine, ask(2))
    assert str(caught.value).count("not started again") == 1, "each request made the message longer"


async def test_no_restart(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter", options={"max_restarts": 0})
    await engine.start()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    await asyncio.sleep(0.3)
    with pytest.raises(EngineDied, match="SIGKILL"):
        await collect(engine, ask(2))


async def test_what_the_child_started_dies_with_it(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine("Parent", extra={"pids": str(tmp_path / "pids")}, options={"max_restarts": 0})
    await engine.start()
    child, grandchild = map(int, (tmp_path / "pids").read_text().split())
    os.kill(child, signal.SIGKILL)
    assert await is_gone(grandchild, 2.0)


async def test_kill_9_of_the_launcher_takes_all_along(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"""
import asyncio
from model_cards.card import ModelCard
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.process import ProcessEngine
async def main():
    options = EngineOptions(extra={{"pids": {str(pids)!r}}})
    spec = EngineSpec(name="parent", card=ModelCard(name="m", source="m"), options=options)
    engine = ProcessEngine(spec, "tests.runner.engines.fault_engines:Parent")
    await engine.start()
    print(engine.socket_path, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as launcher:  # noqa: ASYNC220 (killed below)
        assert launcher.stdout is not None
        socket_path = Path((await asyncio.to_thread(launcher.stdout.readline)).decode().strip())
        child, grandchild = map(int, pids.read_text().split())
        assert psutil.pid_exists(child)
        launcher.kill()
        assert await is_gone(child, 2.0)
        assert await is_gone(grandchild, 2.0)
    deadline = time.monotonic() + 2.0
    while socket_path.parent.exists() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert not socket_path.parent.exists(), "the private folder is left behind"


async def test_a_stopped_child_is_noticed_and_killed(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter", extra={"step_s": 0.005}, hung_after_s=2.0, kill_after_s=4.0)
    await engine.start()
    pid = engine.pid
    assert pid is not None
    stream = asyncio.create_task(collect_long(engine))
    await asyncio.sleep(0.1)
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                await engine.health()
            except EngineDied as error:
                assert "not answered" in str(error)
                break
            await asyncio.sleep(0.05)
    with pytest.raises(EngineDied, match="not answered"):
        await stream
    assert await is_gone(pid, 2.0)


async def collect_long(engine: ProcessEngine) -> None:
    async with aclosing(engine.generate(ask(1_000_000))) as stream:
        async for _ in stream:
            pass


async def test_garbage_in_the_log_is_harmless_and_in_the_socket_is_death(make_engine: MakeEngine) -> None:
    engine = make_engine("Garbage", options={"max_restarts": 0})
    await engine.start()
    with pytest.raises(EngineDied, match="no frame of ours"):
        await collect(engine, ask())


async def test_close_frees_the_folder_and_ends_streams(make_engine: MakeEngine) -> None:
    engine = make_engine("Counter")
    await engine.start()
    pid, socket_path = engine.pid, engine.socket_path
    assert pid is not None
    assert socket_path is not None
    stream = asyncio.create_task(collect_long(engine))
    await asyncio.sleep(0.05)
    await engine.close()
    with pytest.raises(EngineDied, match="closed"):
        await stream
    assert await is_gone(pid, 1.0)
    assert not Path(socket_path).parent.exists()
    with pytest.raises(EngineDied, match="closed"):
        await collect(engine, ask())


def test_the_launchers_own_loop(make_spec: Callable[[], EngineSpec]) -> None:
    """The launcher runs uvloop: a stream, a kill, a restart and a close on it."""
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        module = "tests.runner.engines.fault_engines:Counter"
        engine = ProcessEngine(make_spec(), module, env={"PYTHONPATH": str(ROOT)})
        try:
            await engine.start()
            assert ids_of(await collect(engine, ask(5))) == [1, 2, 3, 4, 5]
            tasks = [asyncio.create_task(collect(engine, ask(100_000))) for _ in range(8)]
            await asyncio.sleep(0.1)
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            await asyncio.wait(tasks, timeout=BOUND_S)
            assert all(isinstance(task.exception(), EngineDied) for task in tasks)
            assert ids_of(await collect(engine, ask(5))) == [1, 2, 3, 4, 5]
        finally:
            await engine.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


@pytest.fixture
def make_spec() -> Callable[[], EngineSpec]:
    return lambda: EngineSpec(name="counter", card=ModelCard(name="m", source="m"))
