"""Routes of the HTTP frontend, errors, keys, CORS, metrics, the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runner.errors import (
    ContextOverflow,
    EngineBusy,
    EngineDied,
    EngineFailed,
    EngineStartFailed,
    TemplateFailed,
    UnsupportedField,
)
from runner.frontends.http import sse
from runner.types import ChatRequest, TextDelta
from tests.runner.frontends.http_server import CHAT, RunningServer, running
from tests.runner.frontends.scripted import ScriptedService, words

STREAM = {**CHAT, "stream": True}


async def read_events(server: RunningServer, path: str, body: Any) -> tuple[int, list[Any], str]:
    """Status, the JSON of the events, and the raw text."""
    async with server.client.post(server.url + path, json=body) as response:
        text = await response.text()
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        return response.status, [line if line == "[DONE]" else json.loads(line) for line in lines], text


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_chats_with_and_without_v1(prefix: str) -> None:
    async with running() as server:
        status, body = await server.post(f"{prefix}/chat/completions", CHAT)
        assert status == 200
        assert body["choices"][0]["message"]["content"] == "one two three"
        assert body["model"] == "toy" and body["usage"]["total_tokens"] == 6
        status, events, _ = await read_events(server, f"{prefix}/chat/completions", STREAM)
        assert status == 200 and events[-1] == "[DONE]"
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == "one two three"


async def test_several_prompts_and_choices_are_numbered() -> None:
    body = {"prompt": ["a b", "c d"], "n": 2}
    async with running() as server:
        _, whole = await server.post("/v1/completions", body)
        assert [(c["index"], c["text"]) for c in whole["choices"]] == [(0, "a b"), (1, "a b"), (2, "c d"), (3, "c d")]
        assert whole["usage"]["completion_tokens"] == 8
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        _, events, _ = await read_events(server, "/v1/completions", asked)
        texts = [""] * 4
        for event in events[:-2]:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert texts == ["a b", "a b", "c d", "c d"]
        assert events[-2]["usage"] == whole["usage"]


async def test_an_adapter_is_a_model_name() -> None:
    async with running() as server:
        status, body = await server.post("/v1/chat/completions", {**CHAT, "model": "pirate"})
        assert (status, body["model"], server.service.requests[0].adapter) == (200, "pirate", "pirate")
        _, listed = await server.get("/v1/models")
        assert [(one["id"], one["parent"]) for one in listed["data"]] == [("toy", None), ("pirate", "toy")]
        assert (await server.get("/v1/models/pirate"))[1]["object"] == "model"


async def test_token_routes() -> None:
    async with running() as server:
        for prefix in ("", "/v1"):
            assert (await server.post(f"{prefix}/tokenize", {"content": "ab"}))[1]["tokens"] == [97, 98]
            assert (await server.post(f"{prefix}/detokenize", {"tokens": [97]}))[1] == {"content": "a", "prompt": "a"}
            rendered = await server.post(f"{prefix}/apply-template", {**CHAT, "temperature": 0})
            assert rendered[1] == {"prompt": "<user>one two three<assistant>"}
        assert (await server.post("/tokenize", {"prompt": "a"}))[1]["tokens"] == [1, 97]
        pieces = (await server.post("/tokenize", {"content": "a", "with_pieces": True}))[1]["tokens"]
        assert pieces == [{"id": 97, "piece": "a"}]
        assert (await server.post("/tokenize", CHAT))[1]["count"] == len("<user>one two three<assistant>")
        assert (await server.post("/tokenize", {"content": "a", "prompt": "a"}))[0] == 400
        assert (await server.post("/detokenize", {"tokens": [2**30]}))[0] == 400


async def test_embeddings() -> None:
    async with running() as server:
        status, body = await server.post("/v1/embeddings", {"input": ["ab", "c"]})
        assert status == 200 and [one["embedding"] for one in body["data"]] == [[2.0, 0.5], [1.0, 0.5]]
        assert (await server.post("/v1/embeddings", {"input": "refused"}))[0] == 400
        assert (await server.post("/v1/embeddings", {"input": "a", "dimensions": 2}))[0] == 200
        assert (await server.post("/v1/embeddings", {"input": "a", "dimensions": 7}))[0] == 400


ERRORS = [
    (ContextOverflow("m", prompt_tokens=9, context_length=8, max_tokens=1), 400, "context_length_exceeded"),
    (UnsupportedField("m", field="min_p"), 400, "unsupported_parameter"),
    (TemplateFailed("m"), 400, "chat_template_error"),
    (EngineBusy("m", retry_after_s=2.5), 503, "engine_busy"),
    (EngineDied("m"), 503, "engine_died"),
    (EngineStartFailed("m"), 503, "engine_not_started"),
    (EngineFailed("m"), 500, "engine_failed"),
    (TimeoutError("m"), 504, "timeout"),
    (KeyError("m"), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_byte_have_a_status(
    error: Exception, status: int, code: str, stream: bool
) -> None:
    async def fail(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        raise error
        yield TextDelta()

    async with running(ScriptedService(script=fail)) as server:
        asked = {**CHAT, "stream": stream}
        async with server.client.post(server.url + "/v1/chat/completions", json=asked) as response:
            body = (await response.json())["error"]
            assert (response.status, body["code"]) == (status, code)
            assert response.headers["X-Request-Id"]
            if isinstance(error, EngineBusy):
                assert response.headers["Retry-After"] == "3"
            if isinstance(error, ContextOverflow):
                assert (body["n_prompt_tokens"], body["n_ctx"], body["type"]) == (9, 8, "invalid_request_error")
            if isinstance(error, UnsupportedField):
                assert body["param"] == "min_p"
        await server.until_idle()


@pytest.mark.parametrize(("error", "status", "code"), ERRORS[4:])
async def test_errors_after_it_are_an_event_and_the_end(error: Exception, status: int, code: str) -> None:
    async def fail_late(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        yield TextDelta(text="a", token_ids=[1])
        raise error

    async with running(ScriptedService(script=fail_late)) as server:
        answered, events, text = await read_events(server, "/v1/chat/completions", STREAM)
        assert answered == 200 and events[-1]["error"]["code"] == code and "[DONE]" not in text
        assert (server.log[-1]["status"], server.log[-1]["completion_tokens"]) == (status, 1)


async def test_a_cancelled_answer_is_no_whole_answer() -> None:
    async def cancelled(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        yield TextDelta(text="a")
        yield TextDelta(finish="cancelled")

    async with running(ScriptedService(script=cancelled)) as server:
        assert (await server.post("/v1/chat/completions", CHAT))[0] == 500
        assert "error" in (await read_events(server, "/v1/chat/completions", STREAM))[1][-1]


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/v1/chat", "/v1//models"])
async def test_unknown_routes(path: str) -> None:
    async with running() as server:
        status, body = await server.get(path)
        assert (status, body["error"]["code"]) == (404, "not_found")


async def test_wrong_methods_and_models() -> None:
    async with running() as server:
        status, body = await server.get("/v1/chat/completions")
        assert (status, body["error"]["code"]) == (405, "method_not_allowed")
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"):
            fields = {"messages": CHAT["messages"]} if "chat" in path else {"prompt": "a"}
            fields = {"input": "a"} if "embed" in path else fields
            status, body = await server.post(path, {**fields, "model": "gpt-9"})
            assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")


async def test_unknown_fields_are_refused_or_reported() -> None:
    async with running() as server:
        status, body = await server.post("/v1/chat/completions", {**CHAT, "temprature": 1})
        assert (status, body["error"]["param"]) == (400, "temprature") and "temperature" in body["error"]["message"]
    async with running(lenient=True) as server:
        status, body = await server.post("/v1/chat/completions", {**CHAT, "temprature": 1})
        assert status == 200 and "temprature" in body["warnings"][0]
        _, events, _ = await read_events(server, "/v1/chat/completions", {**STREAM, "temprature": 1})
        assert sum("warnings" in event for event in events) == 1


async def test_keys_guard_all_but_the_probes() -> None:
    async with running(api_key=("first", "second")) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "firs"}, {"Authorization": "Basic first"}):
            for path in ("/v1/models", "/metrics", "/", "/openapi.json", "/nope"):
                status, body = await server.get(path, headers=headers)
                assert (status, body["error"]["code"]) == (401, "invalid_api_key")
            assert (await server.post("/v1/chat/completions", CHAT, headers=headers))[0] == 401
        for path in ("/health", "/v1/health", "/live", "/ready"):
            assert (await server.get(path))[0] == 200
        for headers in ({"Authorization": "bearer  second"}, {"x-api-key": "first"}):
            assert (await server.get("/v1/models", headers=headers))[0] == 200


async def test_cors() -> None:
    ask = {"Origin": "http://a.b", "Access-Control-Request-Method": "POST"}
    async with running(api_key=("k",)) as server:
        headers = {**ask, "Access-Control-Request-Headers": "authorization, x-stainless-os"}
        async with server.client.options(server.url + "/v1/chat/completions", headers=headers) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert response.headers["Access-Control-Allow-Headers"] == "authorization, x-stainless-os"
        async with server.client.get(server.url + "/v1/models", headers={"Origin": "http://a.b"}) as response:
            assert response.status == 401 and response.headers["Access-Control-Allow-Origin"] == "*"
    async with running(cors_origins=("http://a.b",)) as server:
        for origin, allowed in (("http://a.b", "http://a.b"), ("http://evil", None)):
            for method in (server.client.get, server.client.options):
                url, headers = server.url + "/v1/models", {**ask, "Origin": origin}
                async with method(url, headers=headers) as response:
                    assert response.headers.get("Access-Control-Allow-Origin") == allowed
                    assert response.headers["Vary"] == "Origin"


async def test_request_ids() -> None:
    async with running() as server:
        url = server.url + "/v1/chat/completions"
        for given, kept in (("my-id_1:2", True), ("no spaces", False), ("x" * 200, False)):
            async with server.client.post(url, json=STREAM, headers={"X-Request-Id": given}) as response:
                assert (response.headers["X-Request-Id"] == given) is kept
                await response.read()
        # The same id twice at once must not meet in the engine.
        sent = [server.post("/v1/chat/completions", CHAT, headers={"X-Request-Id": "same"}) for _ in range(2)]
        await asyncio.gather(*sent)
        assert len({request.id for request in server.service.requests}) == len(server.service.requests)
        assert [line["request_id"] for line in server.log][-1] == "same"


async def test_health_follows_the_engine() -> None:
    async with running() as server:
        server.service.health_error = EngineDied("the child is gone")
        assert [(await server.get(path))[0] for path in ("/health", "/ready", "/live")] == [503, 503, 200]
        assert "llmrun_engine_up" in (await server.get("/metrics"))[1]
        server.service.health_error = EngineBusy("full")
        assert [(await server.get(path))[0] for path in ("/health", "/ready", "/live")] == [503, 503, 200]
        server.state.catalog.remove("toy")
        assert [(await server.get(path))[0] for path in ("/health", "/ready", "/live")] == [503, 503, 200]
        assert (await server.post("/v1/chat/completions", CHAT))[0] == 404


async def test_metrics_count_streams_and_whole_answers() -> None:
    async with running() as server:
        await server.post("/v1/chat/completions", CHAT)
        await read_events(server, "/v1/chat/completions", STREAM)
        await server.post("/v1/chat/completions", {**CHAT, "model": "nope"})
        families = text_string_to_metric_families((await server.get("/metrics"))[1])
        found = {(s.name, s.labels.get("request_type")): s.value for f in families for s in f.samples}
        name = "dynamo_frontend_{}".format
        assert found[name("requests_total"), "unary"] == found[name("requests_total"), "stream"] == 1
        assert found[name("output_tokens_total"), None] == 6
        assert found[name("time_to_first_token_seconds_count"), None] == 2
        assert found[name("inter_token_latency_seconds_count"), None] == 4
        assert found[name("inflight_requests"), None] == found[name("queued_requests"), None] == 0
        assert found["llmrun_engine_num_running", None] == 0


async def test_the_openapi_document_names_every_route() -> None:
    async with running() as server:
        _, document = await server.get("/openapi.json")
        app_routes = {
            (route.method.lower(), route.resource.canonical)
            for route in server_routes(server)
            if route.resource is not None and route.method != "HEAD"
        }
        documented = {(method, path) for path, item in document["paths"].items() for method in item}
        assert documented == app_routes
        chat = document["components"]["schemas"]["ChatRequest"]
        assert {"messages", "max_completion_tokens", "user", "guided_json"} <= chat["properties"].keys()
        text = json.dumps(document)
        for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
            assert name in document["components"]["schemas"]


def server_routes(server: RunningServer) -> Any:
    from runner.frontends.http.app import make_app

    return make_app(server.state).router.routes()


async def test_a_long_wait_gets_its_head_and_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "OPEN_AFTER_S", 0.02)
    going = asyncio.Event()

    async def slow(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        await going.wait()
        if request.sampling.seed == 1:
            raise EngineFailed("late")
        async for delta in words(service, request):
            yield delta

    async with running(ScriptedService(script=slow)) as server:
        for seed in (0, 1):
            going.clear()
            async with server.client.post(server.url + "/v1/chat/completions", json={**STREAM, "seed": seed}) as one:
                assert one.status == 200
                assert b'"role":"assistant"' in await one.content.readuntil(b"\n\n")
                server.state.pinger._round()
                server.state.pinger._round()
                assert await one.content.readuntil(b"\n\n") == b": ping\n\n"
                going.set()
                rest = await one.text()
                assert rest.endswith("data: [DONE]\n\n") if seed == 0 else '"engine_failed"' in rest


async def test_http_1_0_gets_a_plain_stream() -> None:
    async with running() as server:
        port = int(server.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(STREAM).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = await reader.read()
        writer.close()
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert b"chunked" not in head and rest.startswith(b"data: ") and rest.endswith(b"data: [DONE]\n\n")


async def test_keep_alive_connections_are_reused() -> None:
    async with running() as server:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as client:
            for body in (CHAT, STREAM, {**CHAT, "bad": 1}, STREAM):
                async with client.post(server.url + "/v1/chat/completions", json=body) as response:
                    assert response.status == (400 if "bad" in body else 200)
                    await response.read()
            assert len(connector._conns) == 1
