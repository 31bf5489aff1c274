"""/tokenize, /detokenize and /apply-template, in the spellings of llama.cpp and of vLLM at once."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from runner.errors import RequestError
from runner.frontends.http.errors import json_response
from runner.frontends.http.state import STATE, State
from runner.openai_fields import BOOL, Kind, integer, list_of, string
from runner.openai_requests import decode_body, parse_chat, read_fields
from runner.openai_tables import CHAT_FIELDS, TEMPLATE_FIELDS
from runner.services import ChatService

MAX_TEXT_CHARS = 2_000_000
"""More than any context holds; the ids of ten megabytes are a gigabyte of Python numbers."""

TOKENIZE_FIELDS: dict[str, Kind] = {
    **TEMPLATE_FIELDS,
    "content": string(MAX_TEXT_CHARS),
    "prompt": string(MAX_TEXT_CHARS),
    "add_special": BOOL,
    "add_special_tokens": BOOL,
    "parse_special": BOOL,
    "with_pieces": BOOL,
    "return_token_strs": BOOL,
}
DETOKENIZE_FIELDS: dict[str, Kind] = {
    "model": string(1024),
    "tokens": list_of(integer(0), 2_000_000),
    "skip_special_tokens": BOOL,
}


async def tokenize(request: web.Request) -> web.Response:
    """POST /tokenize: `content` (llama.cpp), `prompt` (vLLM) or `messages` -> `tokens`, `count`, `max_model_len`."""
    state = request.app[STATE]
    body = decode_body(await request.read())
    values, _ = read_fields(body, TOKENIZE_FIELDS, lenient=state.lenient)
    given = [name for name in ("content", "prompt", "messages") if name in values]
    if len(given) != 1:
        raise RequestError("give one of content, prompt and messages", field=given[1] if given else "content")
    service, _ = state.catalog.resolve(values.get("model", ""))
    # A tokenizer may need seconds for megabytes: not on the loop that streams tokens.
    return json_response(await asyncio.to_thread(_tokenize, service, values, given[0], body, state))


def _tokenize(
    service: ChatService, values: dict[str, Any], source: str, body: dict[str, Any], state: State
) -> dict[str, Any]:
    text = _render(service, body, state) if source == "messages" else values[source]
    # vLLM adds special tokens to prompts unless told not to; llama.cpp adds none to content unless told to.
    add_special = values.get("add_special", values.get("add_special_tokens", source == "prompt"))
    ids = service.tokenize(text, add_special=add_special, parse_special=values.get("parse_special", True))
    tokens: list[Any] = ids
    if values.get("with_pieces"):
        tokens = [{"id": one, "piece": service.detokenize([one])} for one in ids]
    out: dict[str, Any] = {"tokens": tokens, "count": len(ids), "max_model_len": service.info.context_length or None}
    if values.get("return_token_strs"):
        out["token_strs"] = [service.detokenize([one]) for one in ids]
    return out


async def detokenize(request: web.Request) -> web.Response:
    """POST /detokenize: `tokens` -> `content` (llama.cpp) and `prompt` (vLLM), which are the same."""
    state = request.app[STATE]
    values, _ = read_fields(decode_body(await request.read()), DETOKENIZE_FIELDS, lenient=state.lenient)
    if "tokens" not in values:
        raise RequestError("tokens is missing; give a list of token ids", field="tokens")
    service, _ = state.catalog.resolve(values.get("model", ""))
    skip = values.get("skip_special_tokens", False)
    text = await asyncio.to_thread(service.detokenize, list(values["tokens"]), skip_special=skip)
    return json_response({"content": text, "prompt": text})


async def apply_template(request: web.Request) -> web.Response:
    """POST /apply-template: a chat's body -> the `prompt` that the model would get."""
    state = request.app[STATE]
    body = decode_body(await request.read())
    values, warnings = read_fields(body, CHAT_FIELDS, lenient=state.lenient)
    service, _ = state.catalog.resolve(values.get("model", ""))
    prompt = await asyncio.to_thread(_render, service, body, state)
    return json_response({"prompt": prompt, **({"warnings": list(warnings)} if warnings else {})})


def _render(service: ChatService, body: dict[str, Any], state: State) -> str:
    """Fields of the template only: the rest of the body is not about the prompt."""
    shown = {name: value for name, value in body.items() if name in TEMPLATE_FIELDS}
    call = parse_chat(shown, request_id="template", defaults=state.defaults)
    return service.render(call.requests[0])
