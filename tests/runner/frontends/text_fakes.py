"""A scripted ChatService: every answer is given as a list of pieces; an exception among them is raised there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from model_cards.card import ModelCard
from runner.types import ChatRequest, EngineInfo, TextDelta, Usage

Piece = str | Exception | float
"""Text, an error to raise, or seconds to wait."""


class ScriptedService:
    """Answers come from `answers` in turn, or from `make(request)`; requests are kept."""

    def __init__(
        self,
        *answers: list[Piece],
        make: Callable[[ChatRequest], list[Piece]] | None = None,
        context_length: int = 2048,
        name: str = "fake",
    ) -> None:
        self.card = ModelCard(name=name, source=name, context_length=context_length)
        self.info = EngineInfo(name="scripted", version="1", context_length=context_length)
        self.requests: list[ChatRequest] = []
        self.num_closed = 0
        self.finish: Any = "stop"
        self._answers = list(answers)
        self._make = make

    async def start(self) -> EngineInfo:
        return self.info

    async def close(self) -> None:
        self.num_closed += 1

    async def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        self.requests.append(request)
        pieces = self._make(request) if self._make else self._answers.pop(0)
        num = 0
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, float):
                await asyncio.sleep(piece)
                continue
            num += 1
            yield TextDelta(text=piece, token_ids=[num])
        prompt_tokens = sum(len(str(message["content"]).split()) for message in request.messages or [])
        yield TextDelta(finish=self.finish, usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=num))
