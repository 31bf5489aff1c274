"""Bad bodies, bad requests and hostile bytes: a clear 4xx, and the server lives on."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest

from tests.runner.frontends.http_server import CHAT, RunningServer, running

CHATS = "/v1/chat/completions"

BODIES: list[bytes] = [
    b"",
    b"{",
    b"nonsense",
    b"[]",
    b"null",
    b'{"messages": NaN}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    b'{"messages": []}',
    b'{"messages": "hi"}',
    b'{"messages": [{"role": "wizard", "content": "hi"}]}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": -1}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
    b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": ' + b"9" * 400 + b"}",
    b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": ' + b"9" * 9000 + b"}",
    b'{"messages": [{"role": "user", "content": "hi"}], "stop": [' + b'"x",' * 9999 + b'"x"]}',
    b'{"\\u0000": 1}',
    b"[" * 200_000,
]


async def post_raw(server: RunningServer, data: bytes, **headers: str) -> tuple[int, Any]:
    async with server.client.post(server.url + CHATS, data=io.BytesIO(data), headers=headers) as response:
        return response.status, await response.json()


async def test_every_bad_body_is_a_400_with_a_message() -> None:
    async with running() as server:
        for body in BODIES:
            status, answer = await post_raw(server, body)
            assert status == 400 and answer["error"]["type"] == "invalid_request_error", body[:80]
            assert 0 < len(answer["error"]["message"]) < 500
        assert not server.service.requests
        assert (await server.post(CHATS, CHAT))[0] == 200


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=latin-1", "nonsense"]
)
async def test_the_content_type_does_not_matter(content_type: str) -> None:
    async with running() as server:
        status, _ = await post_raw(server, json.dumps(CHAT).encode(), **{"Content-Type": content_type})
        assert status == 200


async def test_a_body_over_the_limit() -> None:
    async with running(body_limit_mb=1) as server:
        big = json.dumps({"messages": [{"role": "user", "content": "x" * 2_000_000}]}).encode()
        status, answer = await post_raw(server, big)
        assert (status, answer["error"]["code"]) == (413, "request_too_large")
        assert "--body-limit-mb" in answer["error"]["message"]
        assert (await server.post(CHATS, CHAT))[0] == 200


async def test_ten_megabytes_are_an_overflow_with_numbers() -> None:
    async with running() as server:
        big = json.dumps({"messages": [{"role": "user", "content": "word " * 2_000_000}]}).encode()
        status, answer = await post_raw(server, big)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert answer["error"]["n_ctx"] == 64 and answer["error"]["n_prompt_tokens"] > 1_000_000


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"\x00" * 1000,
    ],
)
async def test_hostile_bytes_do_not_hurt(data: bytes) -> None:
    async with running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        writer.write(data)
        if writer.can_write_eof():
            writer.write_eof()
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
        assert (await server.post(CHATS, CHAT))[0] == 200


async def test_a_body_that_is_not_what_its_encoding_says_is_a_400() -> None:
    async with running() as server:
        status, answer = await post_raw(server, b"not gzip at all", **{"Content-Encoding": "gzip"})
        assert status == 400 and "gzip" in answer["error"]["message"]


@pytest.mark.parametrize("data", [b"GET /live HTTP/1.1\r\n\r\n", b"GET /li\x00ve HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_what_is_not_http_is_one_line_in_the_log(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        writer.write(data)
        async with asyncio.timeout(5):
            assert b" 400 " in await reader.readline()
        writer.close()
    (record,) = [record for record in caplog.records if record.name == "aiohttp.server"]
    assert record.exc_info is None and "\n" not in record.getMessage()
    assert "127.0.0.1: not HTTP as it should be" in record.getMessage()


async def test_a_header_attack_cannot_split_the_response() -> None:
    async with running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\rX-Evil: 1\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        assert b"\nX-Evil" not in answer
