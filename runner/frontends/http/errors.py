"""The one table from errors to HTTP: status, OpenAI error type and code. Knows nothing of how errors come about."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any, NamedTuple

from aiohttp import web

from model_cards.errors import CardError
from runner.errors import (
    ContextOverflow,
    EngineBusy,
    EngineDied,
    EngineError,
    EngineStartFailed,
    RequestError,
    TemplateFailed,
    UnknownAdapter,
    UnknownModel,
    UnsupportedField,
)
from runner.frontends.http.record import Record
from runner.openai_responses import encode, error_object

logger = logging.getLogger(__name__)

INVALID = "invalid_request_error"
SERVER = "server_error"


class Unauthorized(RequestError):
    """No API key, or a wrong one."""


class NotEnabled(RequestError):
    """A route that the owner of this server has not opened."""


class ShuttingDown(EngineError):
    """The server drains; a client may try another one."""


class Row(NamedTuple):
    """What an error becomes."""

    status: int
    kind: str
    code: str | None


TABLE: tuple[tuple[type[BaseException], Row], ...] = (
    (Unauthorized, Row(401, INVALID, "invalid_api_key")),
    (UnknownModel, Row(404, INVALID, "model_not_found")),
    (UnknownAdapter, Row(404, INVALID, "adapter_not_found")),
    (NotEnabled, Row(404, INVALID, "not_enabled")),
    (ContextOverflow, Row(400, INVALID, "context_length_exceeded")),
    (UnsupportedField, Row(400, INVALID, "unsupported_parameter")),
    (TemplateFailed, Row(400, INVALID, "chat_template_error")),
    (RequestError, Row(400, INVALID, None)),
    (web.RequestPayloadError, Row(400, INVALID, None)),  # a body that is not what its Content-Encoding says
    (ShuttingDown, Row(503, SERVER, "shutting_down")),
    (EngineBusy, Row(503, SERVER, "engine_busy")),
    (EngineDied, Row(503, SERVER, "engine_died")),
    (EngineStartFailed, Row(503, SERVER, "engine_not_started")),
    (EngineError, Row(500, SERVER, "engine_failed")),
    (CardError, Row(500, SERVER, "model_error")),
    (TimeoutError, Row(504, SERVER, "timeout")),
)
"""First match wins: special before general."""
_UNFORESEEN = Row(500, SERVER, "internal_error")
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


def row_of(error: BaseException) -> Row:
    """The row of an error; one that is not in the table is our bug, a 500."""
    return next((row for kind, row in TABLE if isinstance(error, kind)), _UNFORESEEN)


def body_of(error: BaseException) -> dict[str, Any]:
    """OpenAI's error object. Our own bugs show only their kind; the log has the rest."""
    row = row_of(error)
    message = (
        f"internal error ({type(error).__name__}); the server's log says more" if row is _UNFORESEEN else str(error)
    )
    more: dict[str, int] = {}
    if isinstance(error, ContextOverflow):
        more = {"n_prompt_tokens": error.prompt_tokens, "n_ctx": error.context_length}
    param = error.field if isinstance(error, RequestError) else None
    return error_object(message or row.code or "error", kind=row.kind, code=row.code, param=param, **more)


def response_of(error: BaseException) -> web.Response:
    """The response of an error that came before the first byte of an answer."""
    response = json_response(body_of(error), status=row_of(error).status)
    if isinstance(error, EngineBusy):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, ShuttingDown):
        response.headers["Retry-After"] = "5"
        response.force_close()
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = 'Bearer realm="llmrun"'
    return response


def http_response(error: web.HTTPException, *, method: str, path: str, body_limit: int) -> web.Response:
    """aiohttp's own errors (no such route, wrong method, body too large) as OpenAI error objects."""
    message = error.text or error.reason
    if error.status == 404:
        message = f"there is no {path}; GET /openapi.json lists the routes"
    if isinstance(error, web.HTTPMethodNotAllowed):
        message = f"{method} is not allowed on {path}; use {' or '.join(sorted(error.allowed_methods))}"
    if error.status == 413:
        message = f"the body is larger than {body_limit:,} bytes; shorten it or start with a larger --body-limit-mb"
    kind = INVALID if error.status < 500 else SERVER
    response = json_response(
        error_object(message, kind=kind, code=_HTTP_CODES.get(error.status, "http_error")), status=error.status
    )
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def json_response(body: Any, *, status: int = 200) -> web.Response:
    """A JSON response by the fast encoder."""
    return web.Response(body=encode(body), status=status, content_type="application/json")


def note(record: Record, error: BaseException) -> None:
    """Remember why a request failed; a bug of ours goes to the log with its traceback."""
    record.error = f"{type(error).__name__}: {error}"[:500]
    if row_of(error) is _UNFORESEEN:
        logger.error("request %s failed", record.request_id, exc_info=error)


def is_client_gone(error: BaseException, request: web.Request) -> bool:
    """Whether an error only says that nobody reads the answer any more."""
    return isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing())


def uncancel() -> None:
    """The current task goes on after a CancelledError that was ours (asyncio.Task.uncancel)."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
