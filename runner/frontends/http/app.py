"""The application: the table of routes, and the one wrapper around all handlers.

The wrapper owns what every request gets: an id, the key check, CORS, errors as OpenAI objects, metrics, the log line.
"""

from __future__ import annotations

import asyncio
import re
import secrets

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from runner.frontends.http import adapters, completions, embeddings, errors, health, models, openapi, tokens
from runner.frontends.http.auth import PUBLIC_PATHS
from runner.frontends.http.errors import ShuttingDown
from runner.frontends.http.record import Record
from runner.frontends.http.state import RECORD, STATE, State
from runner.trace import set_trace

REQUEST_ID = "X-Request-Id"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_CLIENT_GONE = 499
"""nginx's status for a client that left; only ever seen in the log and in metrics."""
_PROBES = PUBLIC_PATHS | {"/metrics"}
"""Asked every few seconds by machines: logged with -v, or when they fail."""

POST_ROUTES = {
    "/chat/completions": completions.chat,
    "/completions": completions.completion,
    "/embeddings": embeddings.embeddings,
    "/tokenize": tokens.tokenize,
    "/detokenize": tokens.detokenize,
    "/apply-template": tokens.apply_template,
    "/load_lora_adapter": adapters.load,
    "/unload_lora_adapter": adapters.unload,
}
GET_ROUTES = {
    "/models": models.list_models,
    "/models/{model:.+}": models.one_model,
    "/health": health.health,
}
BARE_GET_ROUTES = {
    "/": health.index,
    "/live": health.live,
    "/ready": health.ready,
    "/metrics": health.metrics,
    "/version": health.version,
    "/openapi.json": openapi.document,
}


def make_app(state: State) -> web.Application:
    """All routes; those of OpenAI with and without /v1."""
    app = web.Application(middlewares=[_wrapper], client_max_size=state.body_limit)
    app[STATE] = state
    for prefix in ("/v1", ""):
        for path, handler in POST_ROUTES.items():
            app.router.add_post(prefix + path, handler)
        for path, handler in GET_ROUTES.items():
            app.router.add_get(prefix + path, handler)
    for path, handler in BARE_GET_ROUTES.items():
        app.router.add_get(path, handler)
    app.on_response_prepare.append(_add_headers)
    return app


@web.middleware
async def _wrapper(request: web.Request, handler: Handler) -> web.StreamResponse:
    state = request.app[STATE]
    record = Record(
        state.instruments,
        request_id=_request_id(request),
        method=request.method,
        path=request.path[:200],
        route=_route_name(request),
    )
    request[RECORD] = record
    set_trace(request.headers, record.request_id)
    status, is_gone = _CLIENT_GONE, False
    try:
        response = state.cors.preflight(request) or await _answer(request, handler, state)
        status = record.error_status or response.status
        return response
    except ConnectionError:
        is_gone = True
        return web.Response(status=_CLIENT_GONE)  # to nobody; raised, aiohttp would log it as a fault of ours
    except asyncio.CancelledError:
        is_gone = True
        raise
    finally:
        fields = record.end(status, is_disconnect=is_gone)
        if status >= 400 or state.logs_probes or request.path not in _PROBES:
            state.log(fields)


async def _answer(request: web.Request, handler: Handler, state: State) -> web.StreamResponse:
    """The handler's response, or the error's."""
    record = request[RECORD]
    try:
        if request.path not in PUBLIC_PATHS:
            state.keys.check(request.headers)
        return await handler(request)
    except web.HTTPException as error:
        response = errors.http_response(error, method=request.method, path=record.path, body_limit=state.body_limit)
    except asyncio.CancelledError:
        if not state.is_stopping or request.transport is None:
            raise
        errors.uncancel()
        response = errors.response_of(ShuttingDown("the server is shutting down"))
    except Exception as error:  # the request ends here, whatever it is
        if errors.is_client_gone(error, request):
            raise
        errors.note(record, error)
        return errors.response_of(error)
    record.error = record.error or f"HTTP {response.status}"
    return response


def _request_id(request: web.Request) -> str:
    """The client's X-Request-Id if it is sane, else a new one. It is for logs: engines know others."""
    given = request.headers.get(REQUEST_ID)
    if given is not None and _SANE_ID.fullmatch(given):
        return given
    return "req-" + secrets.token_hex(12)


def _route_name(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "unmatched" if resource is None else resource.canonical


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    state = request.app[STATE]
    headers = response.headers
    headers[hdrs.SERVER] = f"llmrun/{state.version}"
    headers[REQUEST_ID] = request[RECORD].request_id if RECORD in request else _request_id(request)
    headers.update(state.cors.headers(request))
