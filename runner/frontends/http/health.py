"""/health, /live, /ready, /metrics, /version and the page at /."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from runner.errors import EngineBusy, LlmrunError
from runner.frontends.http.errors import body_of, json_response
from runner.frontends.http.state import STATE, State
from runner.metrics import FamilySnapshot, Registry, render
from runner.services import ChatService

_HEALTH_TIMEOUT_S = 5.0
_STATS_TIMEOUT_S = 2.0


async def health(request: web.Request) -> web.Response:
    """GET /health: 200 when requests can be served now, else 503."""
    return await _health(request.app[STATE])


async def ready(request: web.Request) -> web.Response:
    """GET /ready: 200 when a balancer should send requests here; 503 while draining too."""
    state = request.app[STATE]
    if state.is_draining:
        return json_response({"status": "draining"}, status=503)
    return await _health(state)


async def _health(state: State) -> web.Response:
    try:
        await asyncio.wait_for(state.check_health(), _HEALTH_TIMEOUT_S)
    except EngineBusy as error:
        return json_response({"status": "busy", **body_of(error)}, status=503)
    except (LlmrunError, TimeoutError) as error:
        return json_response({"status": "unhealthy", **body_of(error)}, status=503)
    return json_response({"status": "ok", "models": state.catalog.names()})


async def live(request: web.Request) -> web.Response:
    """GET /live: this process answers."""
    return json_response({"status": "live"})


async def version(request: web.Request) -> web.Response:
    """GET /version."""
    return json_response({"name": "llmrun", "version": request.app[STATE].version})


async def index(request: web.Request) -> web.Response:
    """GET /: what this is."""
    state = request.app[STATE]
    return json_response(
        {
            "name": "llmrun",
            "version": state.version,
            "about": "an OpenAI-compatible API; point a client's base_url at /v1",
            "models": state.catalog.names(),
            "openapi": "/openapi.json",
        }
    )


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text."""
    state = request.app[STATE]
    text = render([*state.snapshot_all(), *await _engine_families(state)])
    return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def _engine_families(state: State) -> list[FamilySnapshot]:
    """Engines' own numbers, as llmrun_engine_NAME{model}, those of one worker (`NAME@WORKER`) as
    llmrun_worker_NAME{model,worker}, and whether each engine is up."""
    registry = Registry()
    up = registry.gauge("llmrun_engine_up", "Whether the engine can serve requests", "model", "engine")
    running = registry.gauge("llmrun_answers_running", "Answers running in the worker that was asked")
    running.of().set(state.num_answers)
    families: dict[str, Any] = {}
    services = state.services()
    for (name, service), stats in zip(
        services.items(), await asyncio.gather(*map(_stats, services.values())), strict=True
    ):
        up.of(name, service.info.name).set(0.0 if stats is None else 1.0)
        for key, value in (stats or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            key, _, worker = key.partition("@")
            plain = "".join(char if char.isalnum() else "_" for char in key)
            metric = f"llmrun_worker_{plain}" if worker else f"llmrun_engine_{plain}"
            labels = {"model": name, "worker": worker} if worker else {"model": name}
            if metric not in families:
                families[metric] = registry.gauge(metric, f"{key}, as the engine says", *labels)
            families[metric].of(*labels.values()).set(float(value))
    return registry.snapshot()


async def _stats(service: ChatService) -> dict[str, Any] | None:
    """None when the engine does not answer: /metrics must work just then."""
    try:
        await asyncio.wait_for(service.health(), _STATS_TIMEOUT_S)
        return await asyncio.wait_for(service.stats(), _STATS_TIMEOUT_S)
    except EngineBusy:
        return {}
    except (LlmrunError, TimeoutError):
        return None
