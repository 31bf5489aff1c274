"""The lines of a batch file: what one asks, how it is answered, and the record that it becomes in the output.

Two kinds: dynamo-run's {"text": ...} and OpenAI's {"custom_id", "method", "url", "body"}. Every line becomes exactly
one record, errors included. Knows nothing of files or of how many lines run at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from model_cards.errors import CardError
from runner.catalog import Catalog
from runner.errors import EngineBusy, EngineDied, EngineStartFailed, LlmrunError, RequestError, UnknownModel
from runner.frontends.batch_output import ENGINE_FAILURE
from runner.openai_requests import (
    Call,
    RequestDefaults,
    decode_body,
    parse_chat,
    parse_completion,
    parse_embedding,
)
from runner.openai_responses import ApiKind, Fold, encode, error_object
from runner.types import Usage

Answer = TypeVar("Answer")
MAX_DEATHS = 2
"""A line that was running when the engine died is tried again this often: another line may be to blame."""
_FORMS = 'a line is {"text": "…"} or {"custom_id": "…", "method": "POST", "url": "/v1/chat/completions", "body": {…}}'


class LineResult(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one line, and what it adds to the summary."""

    record: bytes
    usage: Usage = Usage(prompt_tokens=0, completion_tokens=0)
    error: str | None = None
    engine_failed: bool = False


class LineRunner:
    """Answers lines, one at a time or many at once. Raises EngineStartFailed only: then nothing can be answered."""

    def __init__(self, catalog: Catalog, defaults: RequestDefaults, *, lenient: bool = False) -> None:
        self._catalog = catalog
        self._defaults = defaults
        self._lenient = lenient

    async def run(self, number: int, raw: bytes) -> LineResult:
        """The record of the line with that number (from 1)."""
        started = time.monotonic()
        line: dict[str, Any] = {}
        try:
            line = _decode(raw)
            is_openai = "custom_id" in line or "body" in line or "url" in line
            if is_openai:
                return await self._run_openai(line)
            return await self._run_text(number, line, started)
        except EngineStartFailed:
            raise
        except (LlmrunError, CardError) as error:
            return _failure(number, line, error, _elapsed_ms(started))

    async def _run_text(self, number: int, line: dict[str, Any], started: float) -> LineResult:
        text = line.get("text")
        if not isinstance(text, str):
            raise RequestError(f"no string under the key text; {_FORMS}", field="text")
        body = {"messages": [{"role": "user", "content": text}]}
        call = parse_chat(body, request_id=_new_id("batch"), lenient=self._lenient, defaults=self._defaults)
        answer = await self._answer(call, "chat")
        choice = answer["choices"][0]
        usage = _usage(answer)
        record = {
            **line,
            "response": choice["message"]["content"] or "",
            "tokens_in": usage.prompt_tokens,
            "tokens_out": usage.completion_tokens,
            "elapsed_ms": _elapsed_ms(started),
            "finish_reason": choice["finish_reason"],
        }
        if "warnings" in answer:
            record["warnings"] = answer["warnings"]
        return LineResult(record=encode(record), usage=usage)

    async def _run_openai(self, line: dict[str, Any]) -> LineResult:
        _check_openai(line)
        route = self._routes().get(line["url"].rstrip("/"))
        if route is None:
            allowed = ", ".join(self._routes())
            raise RequestError(f"url is {line['url'][:100]!r}; allowed: {allowed}", field="url")
        body = await route(line["body"])
        return LineResult(record=encode(_openai_record(line, 200, body, None)), usage=_usage(body))

    def _routes(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embedding,
        }

    async def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        call = parse_chat(body, request_id=_new_id("chatcmpl"), lenient=self._lenient, defaults=self._defaults)
        return await self._answer(call, "chat")

    async def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        call = parse_completion(body, request_id=_new_id("cmpl"), lenient=self._lenient, defaults=self._defaults)
        return await self._answer(call, "completion")

    async def _answer(self, call: Call, kind: ApiKind) -> dict[str, Any]:
        """The whole response object."""
        if call.stream:
            raise RequestError("stream cannot be true in a batch file", field="stream")
        return await _persist(lambda: self._answer_once(call, kind))

    async def _answer_once(self, call: Call, kind: ApiKind) -> dict[str, Any]:
        service = self._catalog.get(call.requests[0].model)
        fold = Fold(
            kind,
            response_id=call.requests[0].id,
            model=service.card.name,
            num_choices=call.n * len(call.requests),
        )
        fold.warn(call.warnings)
        for place, request in enumerate(call.requests):
            async with contextlib.aclosing(service.generate(request)) as stream:
                async for delta in stream:
                    fold.add(msgspec.structs.replace(delta, index=place * call.n + delta.index) if place else delta)
        return fold.result()

    async def _embedding(self, asked: dict[str, Any]) -> dict[str, Any]:
        call = parse_embedding(asked, lenient=self._lenient)
        service = self._catalog.get(call.model)
        result = await _persist(lambda: service.embed(_new_id("embd"), list(call.inputs)))
        num_dimensions = len(result.vectors[0]) // 4
        if call.dimensions not in (None, num_dimensions):
            message = f"dimensions is {call.dimensions}, this model makes {num_dimensions}; leave it out"
            raise RequestError(message, field="dimensions")
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(vector, call.base64)}
            for index, vector in enumerate(result.vectors)
        ]
        usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
        body = {"object": "list", "data": data, "model": service.card.name, "usage": usage}
        return {**body, "warnings": list(call.warnings)} if call.warnings else body


async def _persist(attempt: Callable[[], Awaitable[Answer]]) -> Answer:
    """What an attempt returns: waits where the engine is busy, tries again where it died."""
    deaths = 0
    while True:
        try:
            return await attempt()
        except EngineBusy as error:
            await asyncio.sleep(error.retry_after_s)
        except EngineDied:
            deaths += 1
            if deaths > MAX_DEATHS:
                raise


def _decode(raw: bytes) -> dict[str, Any]:
    try:
        return decode_body(raw)
    except RequestError as error:
        said = str(error).replace("the body", "the line")
        raise RequestError(f"{said}; {_FORMS}") from error


def _check_openai(line: dict[str, Any]) -> None:
    for name, kind in (("custom_id", str), ("url", str), ("body", dict)):
        if not isinstance(line.get(name), kind):
            raise RequestError(f"{name} is missing or not {'an object' if kind is dict else 'a string'}; {_FORMS}",
                               field=name)  # fmt: skip
    if line.get("method", "POST") != "POST":
        raise RequestError(f"method is {str(line['method'])[:40]!r}; allowed: POST", field="method")


def _failure(number: int, line: dict[str, Any], error: LlmrunError | CardError, elapsed_ms: int) -> LineResult:
    """A record of the same shape as a good one, with `error` that names the line."""
    message = f"line {number}: {error}"
    engine_failed = not isinstance(error, RequestError | CardError)
    kind = ENGINE_FAILURE if engine_failed else "invalid_request_error"
    code = 500 if engine_failed else 404 if isinstance(error, UnknownModel) else 400
    param = error.field if isinstance(error, RequestError) else None
    said = {"message": message, "type": kind, "param": param, "line": number}
    if "custom_id" in line or "body" in line or "url" in line:
        body = error_object(message, kind=kind, code=None, param=param)
        record = _openai_record(line, code, body, {"code": kind, **said})
    else:
        counts = {"tokens_in": 0, "tokens_out": 0, "elapsed_ms": elapsed_ms, "finish_reason": "error"}
        record = {"text": None, **line, "response": "", **counts, "error": said}
    return LineResult(record=encode(record), error=message, engine_failed=engine_failed)


def _openai_record(
    line: dict[str, Any], status: int, body: dict[str, Any], error: dict[str, Any] | None
) -> dict[str, Any]:
    """One line of an OpenAI batch output file."""
    return {
        "id": _new_id("batch_req"),
        "custom_id": line.get("custom_id"),
        "response": {"status_code": status, "request_id": body.get("id") or _new_id("req"), "body": body},
        "error": error,
    }


def _usage(body: dict[str, Any]) -> Usage:
    usage = body["usage"]
    return Usage(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage.get("completion_tokens", 0))


def _vector(raw: bytes, as_base64: bool) -> str | list[float]:
    return base64.b64encode(raw).decode() if as_base64 else list(struct.unpack(f"<{len(raw) // 4}f", raw))


def _elapsed_ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
