"""/openapi.json: an OpenAPI 3.1 document made from the same tables of fields that check the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from runner.frontends.http.adapters import LOAD_FIELDS, LOAD_REQUIRED, UNLOAD_FIELDS, UNLOAD_REQUIRED
from runner.frontends.http.errors import json_response
from runner.frontends.http.state import STATE, State
from runner.frontends.http.tokens import DETOKENIZE_FIELDS, TOKENIZE_FIELDS
from runner.openai_fields import Kind
from runner.openai_tables import ALIASES, CHAT_FIELDS, COMPLETION_FIELDS, EMBEDDING_FIELDS, IGNORED, NOT_BUILT

_JSON = "application/json"
_PROBES = {
    "/health": ("Whether requests can be served", ("200", "503")),
    "/v1/health": ("Whether requests can be served", ("200", "503")),
    "/live": ("Whether this process answers", ("200",)),
    "/ready": ("Whether a balancer should send requests here", ("200", "503")),
}
_GETS = {"/": "What this is", "/version": "Name and version", "/openapi.json": "This document"}


async def document(request: web.Request) -> web.Response:
    """GET /openapi.json."""
    return json_response(make_document(request.app[STATE]))


def make_document(state: State) -> dict[str, Any]:
    """The document of this server."""
    security: list[dict[str, list[str]]] = [{"bearer": []}, {"api_key": []}] if state.keys else []
    return {
        "openapi": "3.1.0",
        "info": {"title": "llmrun", "version": state.version, "description": "OpenAI-compatible API of llmrun"},
        "paths": _paths(),
        "components": {
            "schemas": {name: {"type": "object", **schema} for name, schema in _schemas().items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": security,
    }


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for prefix in ("/v1", ""):
        for path, (summary, body, answer, streams) in _POSTS.items():
            paths[prefix + path] = {"post": _post(summary, body, answer, streams=streams)}
        for path, (summary, body) in _PLAIN_POSTS.items():
            paths[prefix + path] = {"post": _plain_post(summary, body)}
        paths[f"{prefix}/models"] = {"get": _get("Models on offer", _ref("ModelList"))}
        paths[f"{prefix}/models/{{model}}"] = {
            "get": {
                **_get("One model", _ref("Model")),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
            }
        }
    for path, (summary, statuses) in _PROBES.items():
        answers = {status: {"description": summary, **_content({"type": "object"})} for status in statuses}
        paths[path] = {"get": {"summary": summary, "security": [], "responses": answers}}
    for path, summary in _GETS.items():
        paths[path] = {"get": _get(summary, {"type": "object"})}
    metrics = {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    paths["/metrics"] = {"get": {"summary": "Metrics", "responses": {"200": metrics, "default": _ERROR}}}
    return paths


_POSTS: dict[str, tuple[str, str, str, bool]] = {
    "/chat/completions": ("Answer a chat", "ChatRequest", "ChatCompletion", True),
    "/completions": ("Continue one or several prompts", "CompletionRequest", "Completion", True),
    "/embeddings": ("Vectors of texts", "EmbeddingRequest", "EmbeddingList", False),
    "/tokenize": ("Token ids of a text or a chat", "TokenizeRequest", "Tokens", False),
    "/detokenize": ("Text of token ids", "DetokenizeRequest", "DetokenizedText", False),
    "/apply-template": ("The prompt that a chat becomes", "ChatRequest", "Prompt", False),
}


_PLAIN_POSTS = {
    "/load_lora_adapter": ("Load a LoRA adapter (--allow-runtime-lora)", "LoadAdapterRequest"),
    "/unload_lora_adapter": ("Forget a LoRA adapter (--allow-runtime-lora)", "UnloadAdapterRequest"),
}


def _plain_post(summary: str, body: str) -> dict[str, Any]:
    answer = {"description": "Done", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, **_content(_ref(body))},
        "responses": {"200": answer, "default": _ERROR},
    }


def _post(summary: str, body: str, answer: str, *, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": _ref(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string", "description": "chunks, then data: [DONE]"}}
    return {
        "summary": summary,
        "requestBody": {"required": True, **_content(_ref(body))},
        "responses": {"200": {"description": "The answer", "content": content}, "default": _ERROR},
    }


def _get(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    answer = {"description": summary, **_content(schema)}
    return {"summary": summary, "responses": {"200": answer, "default": _ERROR}}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {_JSON: {"schema": schema}}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_ERROR: dict[str, Any] = {"description": "What went wrong", **_content(_ref("Error"))}


def _body(fields: Mapping[str, Kind], *required: str, generates: bool = False) -> dict[str, Any]:
    """The schema of a body: exactly the fields that are accepted; null counts as not given."""
    kinds = dict(fields)
    if generates:
        aliases = {alias: fields[name] for alias, name in ALIASES.items() if name in fields}
        kinds |= aliases | IGNORED | NOT_BUILT
    properties = {
        name: kind.schema if name in required else {"anyOf": [kind.schema, {"type": "null"}]}
        for name, kind in kinds.items()
    }
    return {"properties": properties, "required": list(required), "additionalProperties": False}


_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_OBJECT_OR_NULL = {"type": ["object", "null"]}
_FINISH = {"enum": ["stop", "length", "tool_calls", None]}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"properties": properties, "required": list(required or properties)}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _schemas() -> dict[str, Any]:
    choice = {"index": _COUNT, "finish_reason": _FINISH, "logprobs": _OBJECT_OR_NULL}
    head = {"id": _TEXT, "object": _TEXT, "created": _COUNT, "model": _TEXT}
    message = {"type": "object", **_object("role", "content", role=_TEXT, content=_TEXT_OR_NULL)}
    vector = {"oneOf": [{"type": "array", "items": {"type": "number"}}, _TEXT]}
    embedding = {"type": "object", **_object(object=_TEXT, index=_COUNT, embedding=vector)}
    error = _object("message", "type", message=_TEXT, type=_TEXT, param=_TEXT_OR_NULL, code=_TEXT_OR_NULL)
    chat_choice = {"type": "object", **_object(message=message, **choice)}
    text_choice = {"type": "object", **_object(text=_TEXT, **choice)}
    return {
        "ChatRequest": _body(CHAT_FIELDS, "messages", generates=True),
        "CompletionRequest": _body(COMPLETION_FIELDS, "prompt", generates=True),
        "EmbeddingRequest": _body({**EMBEDDING_FIELDS, "user": IGNORED["user"]}, "input"),
        "TokenizeRequest": _body(TOKENIZE_FIELDS),
        "DetokenizeRequest": _body(DETOKENIZE_FIELDS, "tokens"),
        "LoadAdapterRequest": _body(LOAD_FIELDS, *LOAD_REQUIRED),
        "UnloadAdapterRequest": _body(UNLOAD_FIELDS, *UNLOAD_REQUIRED),
        "ChatCompletion": _object(**head, choices=_list(chat_choice), usage=_ref("Usage")),
        "Completion": _object(**head, choices=_list(text_choice), usage=_ref("Usage")),
        "EmbeddingList": _object(object=_TEXT, data=_list(embedding), model=_TEXT, usage={"type": "object"}),
        "Tokens": _object("tokens", "count", tokens={"type": "array"}, count=_COUNT),
        "DetokenizedText": _object(content=_TEXT, prompt=_TEXT),
        "Prompt": _object(prompt=_TEXT),
        "Usage": _object(
            prompt_tokens=_COUNT,
            completion_tokens=_COUNT,
            total_tokens=_COUNT,
            prompt_tokens_details={"type": "object"},
        ),
        "Model": _object("id", "object", "created", "owned_by", id=_TEXT, object=_TEXT, created=_COUNT, owned_by=_TEXT),
        "ModelList": _object(object=_TEXT, data=_list(_ref("Model"))),
        "Error": _object(error={"type": "object", **error}),
    }
