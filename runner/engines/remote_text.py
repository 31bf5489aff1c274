"""out=dyn:// to workers that take messages and text (in=dyn out=pystr, or Dynamo's ModelInput.Text): a ChatService.

Owns the translation of a request and of its answer's items. A worker that is lost after the first of them ends the
answer with an error: what a text depends on is not known here, so that it cannot go on elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from runner.engines.base import EngineSpec
from runner.engines.remote import RemoteEngine
from runner.engines.text_service import TextService
from runner.engines.user_chunks import ChunkReader, chat_body
from runner.errors import EngineFailed
from runner.net.texts import decode_own_text, own_request
from runner.types import ChatRequest, EngineInfo, TextDelta


class RemoteText(TextService):
    """One remote model. `remote` knows its workers; its own token level is not used."""

    def __init__(self, spec: EngineSpec, remote: RemoteEngine) -> None:
        super().__init__(spec)
        self._remote = remote

    async def start(self) -> EngineInfo:
        """See ChatService."""
        self.info = await self._remote.start()
        return self.info

    async def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """See ChatService."""
        call = self._remote.call(field="messages")
        answer = _Answer(request.sampling.n or 1, f"a worker of {self.card.name}")
        body = {**chat_body(request, self.card.name), "llmrun": own_request(request)}
        async with contextlib.aclosing(call.items(request.id, body)) as items:
            async for item in items:
                for delta in answer.read(item):
                    call.is_answered = answer.is_finished
                    yield delta
                if answer.is_finished:
                    return
        for delta in answer.rest():
            yield delta

    async def health(self) -> None:
        """See ChatService."""
        await self._remote.health()

    async def stats(self) -> dict[str, Any]:
        """See ChatService."""
        return dict(await self._remote.stats())

    async def close(self) -> None:
        """See ChatService."""
        await self._remote.close()


class _Answer:
    """Items of one answer -> deltas: an llmrun's as they are, another's as OpenAI's chunks."""

    def __init__(self, num_choices: int, whose: str) -> None:
        self._left = num_choices
        self._chunks = ChunkReader(whose)
        self._is_own = False

    @property
    def is_finished(self) -> bool:
        """Every choice has ended. Chunks may still bring the usage, and end with the stream."""
        return self._is_own and self._left <= 0

    def read(self, item: Any) -> list[TextDelta]:
        """Raises EngineFailed."""
        delta = decode_own_text(item)
        if delta is None:
            return self._chunks.read(item)
        self._is_own = True
        self._left -= delta.finish is not None
        return [delta]

    def rest(self) -> list[TextDelta]:
        """At the end of the stream. Raises EngineFailed."""
        if self._is_own:
            raise EngineFailed("the worker ended a stream without saying why")
        return self._chunks.finish()
