"""/v1/models: what is on offer, adapters included."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from runner.frontends.http.errors import json_response
from runner.frontends.http.state import STATE, State
from runner.services import ChatService
from runner.types import ADAPTER


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    state = request.app[STATE]
    data = []
    for name in state.catalog.names():
        data += _with_adapters(name, state.catalog.get(name), state)
    return json_response({"object": "list", "data": list({entry["id"]: entry for entry in data}.values())})


async def one_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}; ids may have slashes."""
    state = request.app[STATE]
    name = request.match_info["model"]
    service, adapter = state.catalog.resolve(name)
    parent = service.card.name if adapter else None
    return json_response(_entry(name, service, state, parent))


def _with_adapters(name: str, service: ChatService, state: State) -> list[dict[str, Any]]:
    adapters = [word.removeprefix(ADAPTER) for word in service.info.capabilities if word.startswith(ADAPTER)]
    return [_entry(name, service, state, None), *(_entry(one, service, state, name) for one in adapters)]


def _entry(name: str, service: ChatService, state: State, parent: str | None) -> dict[str, Any]:
    """OpenAI's fields; vLLM's max_model_len, root and parent; and the engine."""
    return {
        "id": name,
        "object": "model",
        "created": state.started_at,
        "owned_by": "llmrun",
        "max_model_len": service.info.context_length or service.card.context_length or None,
        "root": service.card.name,
        "parent": parent,
        "engine": service.info.name,
    }
