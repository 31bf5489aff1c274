"""Embeddings over the wire: the same bytes as from the engine, whoever asks, and from another worker if one is lost."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runner.errors import EngineBusy, EngineDied, EngineFailed, RequestError, UnsupportedField
from runner.net.embeddings import MAX_INPUTS, VectorReader, decode_embedding, encode_embedding, encode_vectors
from runner.types import EmbedRequest, EmbedResult, EngineInfo
from tests.runner.net.cluster import InProcess

DIMENSIONS = 4096


def vector(ids: list[int]) -> bytes:
    return array("f", [(sum(ids) * 7 + place) / 3 for place in range(DIMENSIONS)]).tobytes()


class Embedder:
    """One vector by the ids; fails as told."""

    def __init__(self, error: Exception | None = None, *, capabilities: tuple[str, ...] = ("embed",)) -> None:
        self.error, self.capabilities = error, capabilities
        self.num_calls = 0

    async def start(self) -> EngineInfo:
        return EngineInfo(name="embedder", context_length=64, max_running=4, capabilities=self.capabilities)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        self.num_calls += 1
        if self.error is not None:
            raise self.error
        return EmbedResult(vectors=[vector(ids) for ids in request.inputs], prompt_tokens=sum(map(len, request.inputs)))

    def generate(self, request: Any) -> Any:
        raise AssertionError("nobody asked for text")

    async def health(self) -> None: ...

    async def stats(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...


@asynccontextmanager
async def cluster(*engines: Embedder) -> AsyncIterator[InProcess]:
    made = InProcess(list(engines))  # type: ignore[arg-type]
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def embed(made: InProcess, inputs: list[list[int]]) -> EmbedResult:
    async with asyncio.timeout(20):
        return await made.embed(EmbedRequest(id="e1", inputs=inputs))


@pytest.mark.parametrize("num_inputs", [1, 3, 300])
async def test_the_vectors_are_those_of_the_engine(num_inputs: int) -> None:
    inputs = [[number % 500, 1, 2] for number in range(num_inputs)]
    async with cluster(Embedder()) as made:
        result = await embed(made, inputs)
        assert result.vectors == [vector(ids) for ids in inputs] and result.prompt_tokens == 3 * num_inputs
        assert all(not worker.num_running and not worker.streams for worker in made.pool.workers)


async def test_another_worker_is_asked() -> None:
    for error, is_down in ((EngineDied("gone"), True), (EngineBusy("full"), False)):
        bad, well = Embedder(error), Embedder()
        async with cluster(bad, well) as made:
            assert (await embed(made, [[1]])).vectors == [vector([1])]
            assert (bad.num_calls, well.num_calls) == (1, 1)
            assert (made.pool.workers[0].down is not None) == is_down
    async with cluster(Embedder(EngineBusy("full"))) as made:
        with pytest.raises(EngineBusy, match="full"):
            await embed(made, [[1]])


async def test_what_is_wrong_with_the_request_comes_back_as_such() -> None:
    async with cluster(Embedder(RequestError("too odd", field="input"))) as made:
        with pytest.raises(RequestError, match="too odd"):
            await embed(made, [[1]])
    async with cluster(Embedder()) as made:
        with pytest.raises(RequestError, match="an input has 65 tokens; the context has 64"):
            await embed(made, [[1] * 65])
        with pytest.raises(RequestError, match="outside of 0 to 511"):
            await embed(made, [[1], [512]])
        with pytest.raises(RequestError, match="none of them empty"):
            await embed(made, [[1], []])
    async with cluster(Embedder(capabilities=("temperature",))) as made:
        with pytest.raises(UnsupportedField, match="makes no embeddings with this model"):
            await embed(made, [[1]])


def test_a_stranger_gets_numbers_and_they_are_read_back_exactly() -> None:
    result = EmbedResult(vectors=[vector([1]), vector([2, 3])], prompt_tokens=3)
    (item,) = encode_vectors(result, is_own=False)
    assert item["embeddings"][1] == array("f", vector([2, 3])).tolist() and item["total_tokens"] == 3
    for items in ([item], list(encode_vectors(result, is_own=True))):
        reader = VectorReader(2)
        for one in items:
            assert not reader.is_complete
            reader.read(one)
        assert reader.is_complete and reader.result() == result


@pytest.mark.parametrize(
    "item",
    [
        {}, None, [], {"embeddings": None}, {"embeddings": [["x"]]}, {"embeddings": [[1.0]] * 3, "prompt_tokens": 1},
        {"embeddings": [[1.0], [1.0, 2.0]], "prompt_tokens": 1}, {"embeddings": [[1.0]], "prompt_tokens": 1},
        {"embeddings": [[], []], "prompt_tokens": 1}, {"llmrun_vectors": [b"abc", b"abcd"], "prompt_tokens": 1},
        {"llmrun_vectors": ["!!"]}, {"embeddings": [[1.0], [2.0]], "prompt_tokens": "many"},
        {"embeddings": [[1e300], [2.0]], "prompt_tokens": "many"}, {"embeddings": [[1.0], [2.0]]},
    ],
)  # fmt: skip
def test_what_are_no_embeddings_is_refused(item: Any) -> None:
    reader = VectorReader(2)
    with pytest.raises(EngineFailed):
        reader.read(item)
        reader.result()


def test_a_request_for_too_many_is_refused() -> None:
    body = encode_embedding(EmbedRequest(id="e", inputs=[[1]] * (MAX_INPUTS + 1)), "m", "")
    with pytest.raises(RequestError, match="1 to 2048 sequences"):
        decode_embedding(body, "e")
    with pytest.raises(RequestError, match="vectors are not shortened"):
        decode_embedding({"token_ids": [[1]], "dimensions": 5}, "e")
