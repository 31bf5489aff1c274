"""Launch: a plan becomes a running engine, a service in the catalog, and a frontend that runs to its end.

Owns the order of starting and closing, going on to the next engine of out=A,B, and what signals do. Knows no engine and
no frontend by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import msgspec

from model_cards.errors import CardError
from runner import registry
from runner.catalog import Catalog
from runner.chain import PassedOver, brief, sentence
from runner.console import report, say, warn
from runner.engines.base import EngineSpec
from runner.errors import EngineError, EngineStartFailed, LlmrunError, UsageError
from runner.frontends import FRONTENDS
from runner.frontends.base import Frontend
from runner.plan import Plan
from runner.services import ChatService
from runner.spinner import spinner
from runner.timing import TimedService
from runner.types import EngineInfo

_SOON_S = 2.0
"""A worker that is there is found in less; after that who waits is told for what."""

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
    if plan.level == "models":
        return await _run_remote(plan)
    frontend, service = await _start(plan)
    try:
        catalog = Catalog()
        catalog.add(_timed(service) if plan.options.verbose and plan.frontend.name == "stdin" else service)
        return await frontend.run(catalog)
    finally:
        await _close(service)


async def _run_remote(plan: Plan) -> int:
    """The models are found by the engine itself; a server begins without them, other frontends wait for the first."""
    frontend: Frontend = registry.load(FRONTENDS[plan.frontend.name])(plan.frontend)
    is_server = bool(getattr(frontend, "starts_without_models", False))
    models = registry.load(plan.factory)(plan)
    catalog = Catalog()
    try:
        await models.start(catalog, is_server=is_server)
        if not is_server:
            await _first_model(models, plan.options.start_timeout_s)
        return await frontend.run(catalog)
    finally:
        await _close(models)


async def _first_model(models: Any, timeout_s: float) -> None:
    """Wait until a worker is found; who waits is told for what. Raises EngineStartFailed."""
    try:
        await models.first(min(_SOON_S, timeout_s))
    except EngineStartFailed:
        say(f"{models.wanted}; waiting for up to {timeout_s:.0f} s (--start-timeout-s)")
        async with spinner("no worker yet …"):
            await models.first(max(0.0, timeout_s - _SOON_S))


async def _start(plan: Plan) -> tuple[Frontend, ChatService]:
    """Start the engine, and meanwhile (it is another process's work) import and make the frontend.

    A frontend that refuses its arguments ends the start at once.
    """
    starting = asyncio.create_task(start_service(plan))
    try:
        frontend_class = await asyncio.to_thread(registry.load, FRONTENDS[plan.frontend.name])
        frontend: Frontend = frontend_class(plan.frontend)
        service, info = await asyncio.shield(starting)
    except BaseException:
        starting.cancel()
        (ended,) = await asyncio.gather(starting, return_exceptions=True)
        if isinstance(ended, tuple):
            await _close(ended[0])  # it was ready in the very instant of the other's failure
        raise
    if plan.options.verbose:
        about = [f"context {info.context_length:,}", f"{info.max_running} at once"]
        about += [f"{name} {value}" for name, value in info.details.items()]
        say(f"{info.name} {info.version}: {', '.join(about)}")
    return frontend, service


async def start_service(plan: Plan) -> tuple[ChatService, EngineInfo]:
    """The first engine of the plan and its fallbacks that starts. What failed is closed, and told in a line each.

    Raises what the engine raises where the plan has only one, and EngineStartFailed with every reason where all fail.
    """
    plans = [msgspec.structs.replace(plan, fallbacks=()), *plan.fallbacks]
    passed = list(plan.passed)
    _say_passed(passed, plans[0])
    for at, one in enumerate(plans):
        try:
            return await _start_one(one)
        except (EngineError, UsageError, CardError) as error:
            if len(plans) + len(plan.passed) == 1:
                raise
            passed.append(PassedOver(one.engine.name, brief(error, one.engine.name)))
            if at + 1 < len(plans):
                _say_passed(passed[-1:], plans[at + 1])
    raise EngineStartFailed(sentence(passed), hint="llmrun engines shows what is usable here")


def _say_passed(passed: list[PassedOver], following: Plan) -> None:
    for row in passed:
        say(f"llmrun: not out={row.name}: {row.why}; trying out={following.engine.name}")


async def _start_one(plan: Plan) -> tuple[ChatService, EngineInfo]:
    service = make_service(plan)
    try:
        async with spinner(f"loading {plan.card.name} on {plan.engine.name} …"):
            return service, await service.start()
    except BaseException:
        await _close(service)
        raise


def settle(plan: Plan) -> Plan:
    """The plan without the engines of out=A,B that cannot even be made here (not installed, flags that they refuse).

    Starts nothing. A plan with one engine is returned as it is. Raises EngineStartFailed where none is left.
    """
    if not plan.fallbacks and not plan.passed:
        return plan
    kept: list[Plan] = []
    passed = list(plan.passed)
    for one in (msgspec.structs.replace(plan, fallbacks=(), passed=()), *plan.fallbacks):
        try:
            _load(one.factory, one.engine)
        except (EngineError, UsageError) as error:
            passed.append(PassedOver(one.engine.name, brief(error, one.engine.name)))
        else:
            kept.append(one)
    if not kept:
        raise EngineStartFailed(sentence(passed), hint="llmrun engines shows what is usable here")
    return msgspec.structs.replace(kept[0], fallbacks=tuple(kept[1:]), passed=tuple(passed))


def _timed(service: ChatService) -> ChatService:
    timed: Any = TimedService(service, say)
    served: ChatService = timed
    return served


async def _close(service: ChatService | Any) -> None:
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
