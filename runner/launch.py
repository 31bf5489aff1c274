"""Launch: a plan becomes a running engine, a service in the catalog, and a frontend that runs to its end.

Owns the order of starting and closing, and what signals do. Knows no engine and no frontend by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

from runner import registry
from runner.catalog import Catalog
from runner.console import report, say, warn
from runner.engines.base import EngineSpec
from runner.errors import EngineStartFailed, LlmrunError
from runner.frontends import FRONTENDS
from runner.frontends.base import Frontend
from runner.plan import Plan
from runner.services import ChatService
from runner.spinner import spinner
from runner.timing import TimedService

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def run(plan: Plan) -> int:
    """Run a plan to its end; returns the exit code (128 + the signal's number if one ended it).

    Raises LlmrunError and CardError for the caller to report.
    """
    ended_by: list[int] = []
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_run(plan, ended_by))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 128 + (ended_by[0] if ended_by else signal.SIGINT)


def make_service(plan: Plan) -> ChatService:
    """The engine behind its service, not yet started. Raises EngineStartFailed if it cannot even be imported."""
    made = _load(plan.factory, plan.engine)
    if plan.level == "text":
        service: ChatService = made
        return service
    from runner.pipeline import ChatPipeline

    return ChatPipeline(plan.card, made, lenient=plan.options.lenient, say=warn)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _load(factory: str, spec: EngineSpec) -> Any:
    try:
        make_engine = registry.load(factory)
    except ImportError as error:
        raise EngineStartFailed(
            f"out={spec.name} cannot be loaded: {error}", hint="llmrun engines shows what is usable here"
        ) from error
    return make_engine(spec)


async def _run(plan: Plan, ended_by: list[int]) -> int:
    _handle_signals(ended_by)
    service = make_service(plan)
    try:
        frontend = await _start(service, plan)
        catalog = Catalog()
        catalog.add(_timed(service) if plan.options.verbose and plan.frontend.name == "stdin" else service)
        return await frontend.run(catalog)
    finally:
        await _close(service)


async def _start(service: ChatService, plan: Plan) -> Frontend:
    """Start the engine, and meanwhile (it is another process's work) import and make the frontend.

    A frontend that refuses its arguments ends the start at once.
    """
    starting = asyncio.create_task(service.start())
    try:
        frontend_class = await asyncio.to_thread(registry.load, FRONTENDS[plan.frontend.name])
        frontend: Frontend = frontend_class(plan.frontend)
        async with spinner(f"loading {plan.card.name} on {plan.engine.name} …"):
            info = await starting
    except BaseException:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        raise
    if plan.options.verbose:
        about = [f"context {info.context_length:,}", f"{info.max_running} at once"]
        about += [f"{name} {value}" for name, value in info.details.items()]
        say(f"{info.name} {info.version}: {', '.join(about)}")
    return frontend


def _timed(service: ChatService) -> ChatService:
    timed: Any = TimedService(service, say)
    served: ChatService = timed
    return served


async def _close(service: ChatService) -> None:
    """Close also while a signal is cancelling us; a failure to close is told, not raised over the first error."""
    try:
        await asyncio.shield(service.close())
    except LlmrunError as error:
        report(error)


def _handle_signals(ended_by: list[int]) -> None:
    """The first signal cancels the run, which closes everything; a second one leaves at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def stop(number: int) -> None:
        if ended_by:
            os._exit(128 + number)
        ended_by.append(number)
        task.cancel()

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # nohup ignores SIGHUP on purpose: leave it so.
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            continue
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop, number)
