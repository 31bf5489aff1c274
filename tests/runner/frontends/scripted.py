"""A ChatService that answers by a script, and counts what is open: the HTTP frontend's tests talk to it."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Callable
from typing import Any

from model_cards.card import ModelCard
from runner.errors import ContextOverflow, RequestError, UnsupportedField
from runner.types import ChatRequest, EmbedResult, EngineInfo, TextDelta, TextLogprob, Usage

Script = Callable[["ScriptedService", ChatRequest], AsyncGenerator[TextDelta, None]]


class ScriptedService:
    """Answers with the words of the last message, one delta each, unless another script is set."""

    def __init__(self, name: str = "toy", script: Script | None = None, delay_s: float = 0.0) -> None:
        self.card = ModelCard(name=name, source=name, context_length=64)
        self.info = EngineInfo(
            name="scripted", context_length=64, max_running=8, capabilities=("embed", "adapter:pirate")
        )
        self.script = script
        self.delay_s = delay_s
        self.requests: list[ChatRequest] = []
        self.num_open = 0
        self.num_closed_early = 0
        self.health_error: Exception | None = None

    async def start(self) -> EngineInfo:
        return self.info

    async def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        self.requests.append(request)
        self.num_open += 1
        finished = False
        try:
            stream = (self.script or words)(self, request)
            try:
                async for delta in stream:
                    yield delta
            finally:
                await stream.aclose()
            finished = True
        finally:
            self.num_open -= 1
            self.num_closed_early += not finished

    async def embed(self, request_id: str, inputs: list[str | list[int]]) -> EmbedResult:
        if "refused" in inputs:
            raise UnsupportedField("engine 'scripted' makes no embeddings of that", field="input")
        vectors = [array("f", [float(len(text)), 0.5]).tobytes() for text in inputs]
        return EmbedResult(vectors=vectors, prompt_tokens=sum(map(len, inputs)))

    def render(self, request: ChatRequest) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in request.messages or []) + "<assistant>"

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return [1] * add_special + [ord(char) for char in text]

    def detokenize(self, token_ids: list[int], *, skip_special: bool = False) -> str:
        if any(one > 0x10FFFF for one in token_ids):
            raise RequestError("no such token id", field="tokens")
        return "".join(map(chr, token_ids))

    async def health(self) -> None:
        if self.health_error is not None:
            raise self.health_error

    async def stats(self) -> dict[str, Any]:
        return {"num_running": self.num_open, "note": "text is left out"}

    async def close(self) -> None:
        return


def text_of(request: ChatRequest) -> str:
    """What the script answers with."""
    if request.messages is not None:
        return str(request.messages[-1]["content"])
    return request.prompt if isinstance(request.prompt, str) else " ".join(map(str, request.prompt or []))


async def words(service: ScriptedService, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
    """One delta a word, for each choice in turn; the context is 64 words."""
    parts = text_of(request).split(" ")
    if len(parts) > service.card.context_length:
        raise ContextOverflow("too long", prompt_tokens=len(parts), context_length=64, max_tokens=None)
    n = request.sampling.n or 1
    parts = parts[: request.max_tokens]
    total = Usage(prompt_tokens=len(parts), completion_tokens=n * len(parts), cached_tokens=1)
    for number, part in enumerate(parts):
        for index in range(n):
            await asyncio.sleep(service.delay_s)
            last = number == len(parts) - 1
            text = part if number == 0 else " " + part
            entry = TextLogprob(token_id=number, token=text, bytes=list(text.encode()), logprob=-0.5)
            yield TextDelta(
                index=index,
                text=text,
                token_ids=[number],
                logprobs=None if request.sampling.logprobs is None else [entry],
                finish="stop" if last else None,
                usage=total if last and index == n - 1 else None,
            )
