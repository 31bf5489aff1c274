"""The real clients: openai's Python library, sync and async, and curl."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator

import openai
import pytest

from runner.errors import EngineDied
from runner.types import ChatRequest, TextDelta
from tests.runner.frontends.http_server import RunningServer, running
from tests.runner.frontends.scripted import ScriptedService

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "one two three"}]


def sync_answers(url: str) -> list[str]:
    """Every endpoint by the synchronous client."""
    with openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0) as client:
        chat = client.chat.completions.create(model="toy", messages=MESSAGES)
        chunks = list(client.chat.completions.create(model="toy", messages=MESSAGES, stream=True))
        text = client.completions.create(model="toy", prompt="a b")
        pieces = list(client.completions.create(model="toy", prompt="a b", stream=True))
        return [
            chat.choices[0].message.content or "",
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
            text.choices[0].text,
            "".join(piece.choices[0].text for piece in pieces),
            client.models.list().data[0].id,
            client.models.retrieve("toy").id,
            str(client.embeddings.create(model="toy", input=["ab"]).data[0].embedding),
        ]


async def test_the_sync_client() -> None:
    async with running(api_key=("k",)) as server:
        answers = await asyncio.to_thread(sync_answers, server.url)
    assert answers == ["one two three", "one two three", "a b", "a b", "toy", "toy", "[2.0, 0.5]"]


def make_client(server: RunningServer, key: str = "k") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


async def test_the_async_client_streams_with_usage_and_logprobs() -> None:
    async with running() as server, make_client(server) as client:
        stream = await client.chat.completions.create(
            model="toy",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            top_logprobs=2,
            n=2,
            max_completion_tokens=5,
        )
        chunks = [chunk async for chunk in stream]
        *answers, last = chunks
        assert (last.choices, last.usage and last.usage.total_tokens) == ([], 9)
        assert all(chunk.usage is None for chunk in answers)
        assert answers[0].choices[0].delta.role == "assistant"
        texts = ["", ""]
        for chunk in answers:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == ["one two three"] * 2
        entries = [entry for chunk in answers for entry in (chunk.choices[0].logprobs or _NONE).content or []]
        assert len(entries) == 6 and entries[0].bytes == list(b"one")


class _NONE:
    content = None


async def test_the_clients_errors() -> None:
    async with running(api_key=("k",)) as server:
        async with make_client(server, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with make_client(server) as client:
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="gpt-9", messages=MESSAGES)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="toy", messages=MESSAGES, temperature=-1)
            assert refused.value.param == "temperature"
            long: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "x " * 100}]
            with pytest.raises(openai.BadRequestError) as over:
                await client.chat.completions.create(model="toy", messages=long, stream=True)
            assert over.value.code == "context_length_exceeded"


async def test_an_engine_that_dies_in_the_stream_raises_in_the_client() -> None:
    async def die(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        yield TextDelta(text="a", token_ids=[1])
        raise EngineDied("the child is gone")

    async with running(ScriptedService(script=die)) as server, make_client(server) as client:
        stream = await client.chat.completions.create(model="toy", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="the child is gone"):
            async for _ in stream:
                pass


async def test_closing_the_clients_stream_frees_the_slot() -> None:
    async def endless(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        while True:
            await asyncio.sleep(0.001)
            yield TextDelta(text="a", token_ids=[1])

    async with running(ScriptedService(script=endless)) as server, make_client(server) as client:
        stream = await client.chat.completions.create(model="toy", messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await server.until_idle()


async def test_curl() -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    async with running(api_key=("k",)) as server:
        big = json.dumps({"messages": [{"role": "user", "content": "x" * 2_000_000}], "stream": True})
        for body in ('{"messages": [{"role": "user", "content": "hi"}], "stream": true}', big):
            process = await asyncio.create_subprocess_exec(
                *("curl", "-sS", "--fail", "-N", server.url + "/v1/chat/completions"),
                *("-H", "Authorization: Bearer k", "--data-binary", "@-"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await process.communicate(body.encode())
            assert process.returncode == 0 and out.endswith(b"data: [DONE]\n\n")
