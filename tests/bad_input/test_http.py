"""Bad requests to a real server: an OpenAI error object that names the culprit, and the server goes on."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.client import CHATS, GOOD, Client
from tests.bad_input.conftest import CONTEXT
from tests.bad_input.program import FAILURE, USAGE, Program

pytestmark = pytest.mark.timeout(300)
NAN, INFINITY, HUGE = float("nan"), float("inf"), 10**400

BODIES: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("nothing", b"", ("not valid JSON", "0 bytes")),
    ("half an object", b'{"messages": [', ("not valid JSON", "truncated")),
    ("no JSON", b"messages=hi", ("not valid JSON",)),
    ("two objects", b"{}{}", ("not valid JSON",)),
    ("a list", b"[]", ("must be a JSON object", "a list of 0 items")),
    ("null", b"null", ("must be a JSON object", "null")),
    ("text that is not UTF-8", b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', ("not valid JSON", "utf-8")),
    ("deep nesting", b"[" * 300_000, ("nested too deep",)),
    ("an empty object", b"{}", ("messages",)),
]


@pytest.mark.parametrize(("body", "telling"), [pytest.param(*rest, id=name) for name, *rest in BODIES])
def test_a_bad_body(server: Client, body: bytes, telling: tuple[str, ...]) -> None:
    server.send(body).refused(400, *telling)
    server.check_alive()


CHANGES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    # wrong types
    ({"messages": "hi"}, ("messages", "'hi'", "a list of messages")),
    ({"messages": {"role": "user"}}, ("messages", "an object of 1 items", "a list of messages")),
    ({"messages": ["hi"]}, ("messages[0]", "'hi'", "role and content")),
    ({"messages": [{"role": "user", "content": 7}]}, ("messages[0].content", "7", "a string")),
    ({"messages": [{"role": "user"}]}, ("messages[0].content", "null", "a string")),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ("'image_url'", "only text is")),
    ({"model": 3}, ("model", "3", "a string")),
    ({"stream": "yes"}, ("stream", "'yes'", "true or false")),
    ({"temperature": "hot"}, ("temperature", "'hot'", "a number from 0")),
    ({"temperature": True}, ("temperature", "true", "a number")),
    ({"max_tokens": 1.5}, ("max_tokens", "1.5", "a whole number from 1")),
    ({"max_tokens": [3]}, ("max_tokens", "a list of 1 items", "a whole number")),
    ({"stop": {"a": 1}}, ("stop", "an object", "a string")),
    ({"logit_bias": {"hello": 1}}, ("logit_bias", "'hello'", "a token id as key")),
    ({"tools": [{"type": "function"}]}, ("tools[0]", "function")),
    ({"response_format": {"type": "yaml"}}, ("response_format", "'yaml'", "json_object")),
    # unknown
    ({"messages": [{"role": "wizard", "content": "hi"}]}, ("messages[0].role", "'wizard'", "user, assistant")),
    ({"temprature": 1}, ("temprature", "did you mean", "temperature")),
    # empty
    ({"messages": []}, ("messages is empty", "at least one")),
    ({"stop": ""}, ("stop", "''", "not empty")),
    # numbers: negative, NaN, infinite, huge
    ({"temperature": -1}, ("temperature", "-1", "from 0")),
    ({"max_tokens": -5}, ("max_tokens", "-5", "from 1")),
    ({"max_tokens": 0}, ("max_tokens", "0", "from 1")),
    ({"n": -1}, ("n: got -1", "from 1")),
    ({"n": 10**9}, ("n: got 1000000000", "to 128")),
    ({"top_p": 2}, ("top_p", "2", "to 1")),
    ({"top_k": -7}, ("top_k", "-7")),
    ({"repetition_penalty": 0}, ("repetition_penalty", "0", "above 0")),
    ({"stop_token_ids": [-1]}, ("stop_token_ids", "-1")),
    ({"top_logprobs": 10**6, "logprobs": True}, ("top_logprobs", "to 20")),
    ({"seed": HUGE}, ("seed", "more than 64 bits")),
    ({"max_tokens": HUGE}, ("max_tokens", "more than 64 bits")),
    ({"max_tokens": 10**12}, ("max_tokens", "a whole number from 1 to 2147483647")),
    ({"temperature": HUGE}, ("temperature", "a number from 0 to 100")),
    ({"temperature": NAN}, ("not valid JSON",)),
    ({"temperature": INFINITY}, ("not valid JSON",)),
    ({"top_p": -INFINITY}, ("not valid JSON",)),
    # long lists
    ({"stop": ["x" + str(i) for i in range(10_000)]}, ("stop", "a list of 10000 items", "64")),
    ({"stop": ["x" * 5000]}, ("stop", "at most 4096 characters")),
    ({"messages": GOOD["messages"] * 10_001}, ("messages", "10001 items", "at most 10000 messages")),
    # half a surrogate pair is not text
    ({"messages": [{"role": "user", "content": "\ud800"}]}, ("surrogate",)),
    ({"messages": [{"role": "user", "content": "so \udc00 it goes on and on"}]}, ("surrogate",)),
    ({"messages": [{"role": "user", "content": "\udc00\ud83d"}]}, ("surrogate",)),
    ({"stop": ["\ud83d"]}, ("surrogate",)),
    ({"model": "\udfff"}, ("surrogate",)),
]


@pytest.mark.parametrize(("changes", "telling"), CHANGES, ids=lambda value: str(value)[:50].encode("ascii", "replace"))
def test_a_bad_field(server: Client, changes: dict[str, Any], telling: tuple[str, ...]) -> None:
    for more in ({}, {"stream": True}):
        server.ask(**more | changes).refused(400, *telling)
    server.check_alive()


GUIDED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"grammar": "root ::= ("}, ("guided.grammar: line 1",)),
    ({"grammar": "root ::= root"}, ("no text can match it",)),
    ({"guided_regex": "(((("}, ("guided.regex", "unclosed group")),
    ({"guided_regex": "(a{1000}){1000}"}, ("too many expressions",)),
    ({"guided_json": {"$ref": "file:///etc/passwd"}}, ("guided.json_schema", "does not fetch")),
    ({"guided_json": {"type": "string", "minLength": 5, "maxLength": 2}}, ("minLength (5) is greater",)),
    ({"guided_choice": []}, ("guided_choice", "a list of 1 to")),
]


@pytest.mark.parametrize(("changes", "telling"), GUIDED, ids=lambda value: str(value)[:40])
def test_a_grammar_that_cannot_be(server: Client, changes: dict[str, Any], telling: tuple[str, ...]) -> None:
    reply = server.ask(**changes)
    if "does not honour" in reply.body.decode():
        reply.refused(400, code="unsupported_parameter")  # echo_core sees no logits
    else:
        reply.refused(400, *telling)
    server.check_alive()


def test_whole_surrogate_pairs_and_strange_text_are_welcome(server: Client) -> None:
    for text in ("\U0001f600", "\0", "\u202e\ufeff\uffff", "<|im_end|>", "{{ 7 * 7 }}", "\\ud800"):
        reply = server.ask(messages=[{"role": "user", "content": text}])
        assert reply.status == 200, (text, reply)


NUMBERS_AS_TEXT = [b"-1e999", b"1e999", b"NaN", b"-Infinity", b"9" * 9000, b"0x10", b"1_000", b"--1"]


@pytest.mark.parametrize("number", NUMBERS_AS_TEXT, ids=lambda number: number[:10].decode())
@pytest.mark.parametrize("field", ["temperature", "max_tokens", "seed"])
def test_numbers_that_json_has_not(server: Client, field: str, number: bytes) -> None:
    body = json.dumps(GOOD | {field: "HERE"}).encode().replace(b'"HERE"', number)
    server.send(body).refused(400)
    server.check_alive()


OTHER_ROUTES: list[tuple[str, Any, tuple[str, ...]]] = [
    ("/v1/completions", {}, ("prompt",)),
    ("/v1/completions", {"prompt": []}, ("prompt", "not empty")),
    ("/v1/completions", {"prompt": [-1]}, ("prompt", "-1", "whole number from 0")),
    ("/v1/completions", {"prompt": [5, 10**9]}, ("1000000000", "from 0 to 1023")),
    ("/v1/completions", {"prompt": [[1], "a", None]}, ("prompt[2]",)),
    ("/v1/completions", {"prompt": "a", "n": 128, "max_tokens": NAN}, ("not valid JSON",)),
    ("/v1/embeddings", {"input": 5}, ("input",)),
    ("/tokenize", {"content": 5}, ("content", "5", "a string")),
    ("/detokenize", {"tokens": ["a"]}, ("tokens", "'a'")),
    ("/detokenize", {"tokens": [10**12]}, ("tokens", "1000000000000")),
    ("/detokenize", {"tokens": [2_000_000_000]}, ("tokens", "2000000000")),
    ("/apply-template", {"messages": []}, ("messages is empty",)),
]


@pytest.mark.parametrize(("path", "body", "telling"), OTHER_ROUTES)
def test_bad_requests_to_the_other_routes(server: Client, path: str, body: Any, telling: tuple[str, ...]) -> None:
    server.post(body, path).refused(400, *telling)
    server.check_alive()


def test_a_model_that_is_not_served(server: Client) -> None:
    server.ask(model="gpt-5").refused(404, "'gpt-5'", "toy", code="model_not_found")


def test_routes_and_methods_that_are_not_there(server: Client) -> None:
    server.post(GOOD, "/v1/chat/complete").refused(404, "/v1/chat/complete", "/openapi.json")
    server.send(b"", CHATS, method="GET").refused(405, "GET is not allowed", "use POST")


@pytest.mark.parametrize("key", [None, "", "wrong", "the-right-key2", "the-right-ke", "\xff\xfe", "x" * 5000])
def test_a_wrong_api_key(server: Client, key: str | None) -> None:
    for path in (CHATS, "/v1/completions", "/tokenize"):
        server.post(GOOD, path, key=key).refused(401, "key", code="invalid_api_key")
    server.send(b"", "/v1/models", method="GET", key=key).refused(401, "key", code="invalid_api_key")
    server.check_alive()


def test_a_prompt_of_ten_megabytes(server: Client) -> None:
    """Refused with the numbers; meanwhile others are answered."""
    body = GOOD | {"messages": [{"role": "user", "content": "the other rain in " * 600_000}]}
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(server.post, body)
        server.check_alive()
        error = refused.result().refused(
            400, "at least", f"the context is {CONTEXT}", "shorten it", code="context_length_exceeded"
        )
    assert error["n_ctx"] == CONTEXT and error["n_prompt_tokens"] > CONTEXT
    server.check_alive()


def test_a_body_over_the_limit(server: Client) -> None:
    server.send(b" " * 48_000_000).refused(413, "47,185,920 bytes", "--body-limit-mb", code="request_too_large")
    server.check_alive()


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context(server: Client, stream: bool) -> None:
    messages = [{"role": "user", "content": "hello " * 400}]
    error = server.ask(messages=messages, stream=stream).refused(
        400, "prompt has ", f"the context is {CONTEXT}", "shorten it", code="context_length_exceeded"
    )
    assert error["n_prompt_tokens"] > CONTEXT and error["param"] == "messages"
    error = server.ask(max_tokens=CONTEXT, stream=stream).refused(
        400, f"max_tokens is {CONTEXT}", "ask for at most", code="context_length_exceeded"
    )
    assert error["param"] == "max_tokens"
    server.check_alive()


TRAPS = [("REFUSE", "this model takes no refusals"), ("DIVIDE", "ZeroDivisionError"), ("ENDLESS", "chat template")]


@pytest.mark.parametrize(("trap", "telling"), TRAPS)
def test_a_chat_template_that_raises(server: Client, trap: str, telling: str) -> None:
    for stream in (False, True):
        reply = server.ask(messages=[{"role": "user", "content": trap}], stream=stream)
        reply.refused(400, "chat template", telling, code="chat_template_error")
    server.check_alive()


def test_the_port_is_in_use(server: Client, llmrun: Program, toy: Path) -> None:
    done = llmrun("in=http", "out=echo_core", toy, "--http-port", str(server.port))
    done.failed(FAILURE, f"port {server.port} on 127.0.0.1 is in use", "--http-port")
    server.check_alive()


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "8080.5"])
def test_a_port_that_is_none(llmrun: Program, toy: Path, port: str) -> None:
    llmrun("in=http", "out=echo_core", toy, f"--http-port={port}").failed(USAGE, "--http-port", port, "1 to 65,535")


def test_a_public_address_without_a_key(llmrun: Program, toy: Path) -> None:
    done = llmrun("in=http", "out=echo_core", toy, "--http-host", "0.0.0.0", stdin=subprocess.DEVNULL)
    done.failed(USAGE, "0.0.0.0", "--api-key", "--insecure")
