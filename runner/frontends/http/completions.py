"""/v1/chat/completions and /v1/completions: a body becomes a Call, its deltas become one object or a stream of events.

Closing the stream of deltas is the only cancel: it happens when the client leaves, for both forms of answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator

import msgspec
from aiohttp import web

from runner.errors import EngineFailed
from runner.fan_out import answer_all
from runner.frontends.http import errors
from runner.frontends.http.errors import ShuttingDown
from runner.frontends.http.record import Record
from runner.frontends.http.sse import EventStream
from runner.frontends.http.state import RECORD, STATE, State
from runner.openai_requests import Call, decode_body, parse_chat, parse_completion
from runner.openai_responses import ApiKind, ChunkWriter, Fold, error_event
from runner.services import ChatService
from runner.types import TextDelta

_PARSERS = {"chat": (parse_chat, "chatcmpl-"), "completion": (parse_completion, "cmpl-")}
_ENDPOINTS = {"chat": "chat_completions", "completion": "completions"}


class Job(msgspec.Struct, frozen=True):
    """One body, understood: which service answers it and under which names."""

    kind: ApiKind
    id: str
    model: str
    call: Call
    service: ChatService

    def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """The answer; closing it cancels."""
        return answer_all(self.service, self.call.requests)

    @property
    def num_choices(self) -> int:
        """Over all prompts."""
        return self.call.n * len(self.call.requests)


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _complete(request, "chat")


async def completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _complete(request, "completion")


async def _complete(request: web.Request, kind: ApiKind) -> web.StreamResponse:
    state, record = request.app[STATE], request[RECORD]
    state.enter()
    try:
        job = _make_job(kind, await request.read(), state)
        record.begin(model=job.service.card.name, endpoint=_ENDPOINTS[kind], is_stream=job.call.stream)
        return await (_stream if job.call.stream else _whole)(request, job, record)
    finally:
        state.leave()


def _make_job(kind: ApiKind, raw: bytes, state: State) -> Job:
    """Raises RequestError. The id is ours, not the client's X-Request-Id: the engine needs it to be unique."""
    parse, prefix = _PARSERS[kind]
    response_id = prefix + secrets.token_hex(12)
    call = parse(decode_body(raw), request_id=response_id, lenient=state.lenient, defaults=state.defaults)
    asked = call.requests[0].model
    service, adapter = state.catalog.resolve(asked)
    if adapter is not None:
        requests = tuple(msgspec.structs.replace(one, adapter=adapter) for one in call.requests)
        call = msgspec.structs.replace(call, requests=requests)
    return Job(kind, response_id, asked or service.card.name, call, service)


async def _whole(request: web.Request, job: Job, record: Record) -> web.Response:
    fold = Fold(job.kind, response_id=job.id, model=job.model, num_choices=job.num_choices)
    fold.warn(job.call.warnings)
    async with contextlib.aclosing(job.deltas()) as deltas:
        async for delta in deltas:
            record.add(delta)
            _check_finish(delta)
            fold.add(delta)
    return errors.json_response(fold.result())


async def _stream(request: web.Request, job: Job, record: Record) -> web.StreamResponse:
    """Errors before the head are raised, for a proper status; later ones become an event, and the stream ends."""
    state = request.app[STATE]
    chunks = ChunkWriter(
        job.kind,
        response_id=job.id,
        model=job.model,
        num_choices=job.num_choices,
        include_usage=job.call.include_usage,
    )
    events = EventStream(request, state.pinger, chunks.first(job.call.warnings))
    events.open_later()
    try:
        await _send_events(job, chunks, events, record)
        return await events.close(chunks.last())
    except asyncio.CancelledError:
        if not (state.is_stopping and events.is_open and request.transport is not None):
            raise
        errors.uncancel()
        return await _end_with(ShuttingDown("the server is shutting down"), events, record)
    except Exception as error:
        if not events.is_open or errors.is_client_gone(error, request):
            raise
        return await _end_with(error, events, record)
    finally:
        await events.abandon()


async def _send_events(job: Job, chunks: ChunkWriter, events: EventStream, record: Record) -> None:
    """The token path."""
    async with contextlib.aclosing(job.deltas()) as deltas:
        async for delta in deltas:
            record.add(delta)
            if delta.finish is not None:
                _check_finish(delta)
            data = chunks.chunk(delta)
            if not events.is_open:
                await events.open(data)
            elif data and events.write(data):
                await events.drain()


async def _end_with(error: Exception, events: EventStream, record: Record) -> web.StreamResponse:
    errors.note(record, error)
    record.error_status = errors.row_of(error).status
    return await events.close(error_event(errors.body_of(error)))


def _check_finish(delta: TextDelta) -> None:
    """`cancelled` is no reason of OpenAI's: a client that still listens must not take it for a whole answer."""
    if delta.finish == "cancelled":
        raise EngineFailed("the answer was cut off by the server")
