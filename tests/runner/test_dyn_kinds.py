"""in=dyn:// with what is no chat of token ids: embedding models, engines of text; through real programs, over HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from runner.net.codecs import encode_item
from runner.net.folder import FolderStore
from runner.net.listing import list_workers
from runner.net.records import CARDS, INSTANCES, decode_card, decode_instance
from tests.runner.engines.test_llamacpp_features import make_bert
from tests.runner.net.cluster import Cluster, Program
from tests.runner.net.daemons import free_port

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
SLOW_ENGINE = '''
import asyncio

async def generate(request):
    """Counts; slowly."""
    for number in range(40):
        await asyncio.sleep(0.05)
        yield {"choices": [{"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
'''


async def _locally(tmp_path: Path, path: str, words: list[str], **body: Any) -> Any:
    """The answer of in=http with the same engine."""
    port = free_port()
    program = Program(["in=http", *words, "--http-port", str(port)], tmp_path)
    try:
        await program.until("Serving ")
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{port}{path}", json=body) as response,
        ):
            assert response.status == 200
            return await response.json()
    finally:
        program.close()


async def _stream(cluster: Cluster, **body: Any) -> tuple[str, list[dict[str, Any]]]:
    """The text of a streamed chat and its chunks."""
    chunks = []
    async with cluster.session.post(
        f"http://127.0.0.1:{cluster.port}/v1/chat/completions", json={**body, "stream": True}
    ) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            data = line.strip().removeprefix(b"data: ")
            if data and data != b"[DONE]":
                chunks.append(json.loads(data))
    text = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk.get("choices", ()))
    return text, chunks


async def test_echo_full(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.worker("out=echo_full", "--model-name", "parrot")
        await cluster.ingress()
        chat = {"messages": [{"role": "user", "content": "¿Qué 🙂?"}], "n": 2, "stop": ["?"]}
        text, _ = await _stream(cluster, **{**chat, "n": 1})
        assert text == "¿Qué 🙂"
        status, answer = await cluster.post("/v1/chat/completions", **chat)
        local = await _locally(tmp_path, "/v1/chat/completions", ["out=echo_full", "--model-name", "parrot"], **chat)
        assert status == 200 and answer["model"] == local["model"] == "parrot"
        assert (answer["choices"], answer["usage"]) == (local["choices"], local["usage"])
        status, answer = await cluster.post("/v1/completions", prompt="hello there", max_tokens=5)
        assert (status, answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (200, "hello", "length")
        status, answer = await cluster.post("/v1/chat/completions", **chat, logit_bias={"5": 1})
        assert status == 400 and "it cannot honour logit_bias" in answer["error"]["message"]
        status, answer = await cluster.post("/v1/embeddings", input="x")
        assert status == 400 and "makes no embeddings" in answer["error"]["message"]


async def test_pystr(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        worker = await cluster.worker(f"out=pystr:{EXAMPLES / 'pystr_upper.py'}", "--model-name", "upper")
        await cluster.worker(f"out=pystr:{EXAMPLES / 'pystr_upper.py'}", "--model-name", "upper")
        await cluster.ingress(num_workers=2)
        messages = [{"role": "user", "content": "some words in a row"}]
        for _ in range(2):
            assert (await _stream(cluster, messages=messages))[0].strip() == "SOME WORDS IN A ROW"
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ended() == 0
        assert (await _stream(cluster, messages=messages))[0].strip() == "SOME WORDS IN A ROW"


async def test_a_text_whose_worker_is_killed_ends_with_an_error(tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_ENGINE)
    async with Cluster(tmp_path) as cluster:
        workers = [await cluster.worker(f"out=pystr:{slow}", "--model-name", "slow") for _ in range(2)]
        await cluster.ingress(num_workers=2)
        messages = [{"role": "user", "content": "count"}]
        running = [asyncio.create_task(_stream(cluster, messages=messages)) for _ in range(2)]
        await asyncio.sleep(0.8)
        workers[0].signal(signal.SIGKILL)
        async with asyncio.timeout(10):
            results = await asyncio.gather(*running)
        whole = "".join(f"{number} " for number in range(40))
        assert sorted(text == whole for text, _ in results) == [False, True]
        broken = next(chunks for text, chunks in results if text != whole)
        assert "was lost in the middle of its answer" in broken[-1]["error"]["message"]
        text, _ = await _stream(cluster, messages=messages)  # the other one is asked
        assert text == whole


async def test_text_and_token_ids_under_one_name(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.worker("out=echo_full", "--model-name", "same")
        ingress = await cluster.ingress()
        await cluster.worker("out=echo_core", "demo", "--model-name", "same")
        await ingress.until("is not used: it takes token ids, the others take text")


async def test_a_stranger_may_ask_in_openais_words(tmp_path: Path) -> None:
    """As Dynamo's frontend asks a worker of ModelInput.Text: a body of OpenAI in, chunks of OpenAI out."""
    from runner.net.client import NetClient

    async with Cluster(tmp_path) as cluster:
        await cluster.worker("out=echo_full", "--model-name", "parrot")
        store = FolderStore(tmp_path / "store")
        (card,) = [decode_card(entry.key, entry.value)[2] for entry in await store.entries(CARDS)]
        assert (card["model_type"], card["model_input"]) == ("Chat | Completions", "Text")
        ((worker,), bad) = await list_workers(store)
        assert (worker.model, bad) == ("parrot", [])
        (instance,) = [decode_instance(entry.key, entry.value) for entry in await store.entries(INSTANCES)]
        client = NetClient("127.0.0.1", "nats://127.0.0.1:1")
        await client.start()
        body = {"model": "parrot", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        stream = await client.open(instance, "r", body, {})
        chunks: list[Any] = []
        while items := await stream.take(10):
            chunks += items
        stream.close()
        await client.close()
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert (text, chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["usage"]["total_tokens"]) == (
            "hi",
            "stop",
            4,
        )
        assert chunks[0]["object"] == "chat.completion.chunk" and encode_item("json", chunks[0])


async def test_embeddings_of_a_chat_model(tmp_path: Path, llamacpp_library: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.worker("out=llamacpp", "demo")
        await cluster.ingress()
        body = {"input": ["Paris is a city", "a second text"], "encoding_format": "base64"}
        status, answer = await cluster.post("/v1/embeddings", **body)
        assert status == 200, answer
        assert answer == await _locally(tmp_path, "/v1/embeddings", ["out=llamacpp", "demo"], **body)
        assert (await cluster.complete([300, 301], 2))[1] == ""


async def test_a_model_that_only_embeds(tmp_path: Path, llamacpp_library: Path) -> None:
    bert = make_bert(tmp_path / "bert.gguf")
    async with Cluster(tmp_path) as cluster:
        await cluster.worker("out=llamacpp", str(bert))
        await cluster.ingress()
        (entry,) = await FolderStore(tmp_path / "store").entries(CARDS)
        assert msgspec.json.decode(entry.value)["card_json"]["model_type"] == "Embedding"
        body = {"input": [[2, 10, 11, 3], [2, 12, 3]]}
        status, answer = await cluster.post("/v1/embeddings", **body)
        assert status == 200, answer
        assert answer == await _locally(tmp_path, "/v1/embeddings", ["out=llamacpp", str(bert)], **body)
        status, answer = await cluster.post("/v1/completions", prompt=[2, 10, 3], max_tokens=2)
        assert status == 400 and "embed" in answer["error"]["message"], answer


pytestmark = pytest.mark.dist
