"""/v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import secrets
from array import array
from typing import Any

from aiohttp import web

from runner.errors import UnsupportedField
from runner.frontends.http.errors import json_response
from runner.frontends.http.state import RECORD, STATE, State
from runner.openai_requests import EmbeddingCall, decode_body, parse_embedding
from runner.types import EmbedResult, Usage

_FLOAT_BYTES = 4


async def embeddings(request: web.Request) -> web.Response:
    """POST /v1/embeddings."""
    state = request.app[STATE]
    state.enter()
    try:
        return await _embed(request, state)
    finally:
        state.leave()


async def _embed(request: web.Request, state: State) -> web.Response:
    call = parse_embedding(decode_body(await request.read()), lenient=state.lenient)
    service, _ = state.catalog.resolve(call.model)
    record = request[RECORD]
    record.begin(model=service.card.name, endpoint="embeddings", is_stream=False)
    result = await service.embed("embd-" + secrets.token_hex(12), list(call.inputs))
    record.add_usage(Usage(prompt_tokens=result.prompt_tokens, completion_tokens=0))
    _check_dimensions(call, result)
    # A thousand vectors take a while to write as JSON: not on the loop that streams tokens.
    return await asyncio.to_thread(_response, call, result, call.model or service.card.name)


def _check_dimensions(call: EmbeddingCall, result: EmbedResult) -> None:
    made = len(result.vectors[0]) // _FLOAT_BYTES if result.vectors else 0
    if call.dimensions not in (None, made):
        raise UnsupportedField(
            f"dimensions: got {call.dimensions}, this model makes {made} and vectors are not shortened; leave it out",
            field="dimensions",
        )


def _response(call: EmbeddingCall, result: EmbedResult, model: str) -> web.Response:
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(vector, as_base64=call.base64)}
        for index, vector in enumerate(result.vectors)
    ]
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    body: dict[str, Any] = {"object": "list", "data": data, "model": model, "usage": usage}
    if call.warnings:
        body["warnings"] = list(call.warnings)
    return json_response(body)


def _vector(vector: bytes, *, as_base64: bool) -> str | list[float]:
    """float32 little-endian, as OpenAI's base64 form is too."""
    if as_base64:
        return base64.b64encode(vector).decode()
    return array("f", vector).tolist()
