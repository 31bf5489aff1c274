"""What a worker answers, by what its model takes: token ids (an Engine), or messages and text (a ChatService).

Owns the reading and checking of one request and the items of its answer. The connection, errors and draining are
endpoint_streams.py's.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Protocol

import msgspec

from runner.capabilities import Capabilities, Reporter
from runner.engines.base import Engine
from runner.errors import RequestError, UnsupportedField
from runner.net.answers import ResponseWriter
from runner.net.embeddings import decode_embedding, encode_vectors, is_embedding
from runner.net.messages import decode_request, encode_delta
from runner.net.texts import OwnText, encode_text, is_own
from runner.openai_requests import parse_chat, parse_completion
from runner.services import ChatService
from runner.types import ChatRequest, EmbedRequest, EngineInfo, TokenRequest


class Answers(Protocol):
    """Made once a worker. A request goes through `read`, then `answer`."""

    def read(self, body: Any, request_id: str) -> Any:
        """The request of a body, checked. Raises RequestError, ValueError."""

    def describe(self, request: Any) -> str:
        """Its size, for the log."""

    async def answer(self, request: Any, writer: ResponseWriter) -> None:
        """Send all items and finish. Raises LlmrunError."""


class TokenAnswers:
    """Of an Engine: token ids, and embeddings where it makes them. `vocab_size` 0: unknown."""

    def __init__(self, engine: Engine, info: EngineInfo, vocab_size: int) -> None:
        self._engine, self._info, self._vocab_size = engine, info, vocab_size
        self._capabilities = Capabilities(info)

    def read(self, body: Any, request_id: str) -> tuple[TokenRequest | EmbedRequest, bool]:
        """See Answers; and whether an llmrun asks."""
        context_length = self._info.context_length
        if is_embedding(body):
            wanted = decode_embedding(body, request_id)
            self._check_embedding(wanted)
            return wanted, is_own(body)
        request = decode_request(body, request_id, context_length or 1 << 30)
        self._check(request)
        return request, is_own(body)

    def describe(self, request: tuple[TokenRequest | EmbedRequest, bool]) -> str:
        """See Answers."""
        asked = request[0]
        return f"{len(asked.token_ids)} tokens" if isinstance(asked, TokenRequest) else f"{len(asked.inputs)} inputs"

    def _check(self, request: TokenRequest) -> None:
        """A stranger's request has passed no pipeline: what could break the engine is refused here."""
        if not self._info.makes_text:
            raise UnsupportedField(f"engine {self._info.name!r} only makes embeddings with this model", field="model")
        ids, room = request.token_ids, self._info.context_length
        self._check_ids(ids)
        if request.max_tokens < 1 or (room and len(ids) + request.max_tokens > room):
            raise RequestError(
                f"{len(ids):,} tokens of prompt and {request.max_tokens:,} of answer; the context has {room:,}"
            )
        report = Reporter(self._capabilities, lenient=False)
        self._capabilities.check_sampling(request.sampling, report)
        self._capabilities.check_min_tokens(request.min_tokens, report)
        self._capabilities.check_adapter(request.adapter, report)

    def _check_embedding(self, request: EmbedRequest) -> None:
        if "embed" not in self._capabilities:
            raise UnsupportedField(f"engine {self._info.name!r} makes no embeddings with this model", field="input")
        room = self._info.context_length
        for ids in request.inputs:
            self._check_ids(ids)
            if room and len(ids) > room:
                raise RequestError(f"an input has {len(ids):,} tokens; the context has {room:,}", field="input")

    def _check_ids(self, ids: list[int]) -> None:
        if not ids or min(ids) < 0 or (self._vocab_size and max(ids) >= self._vocab_size):
            raise RequestError(
                f"token_ids has ids outside of 0 to {self._vocab_size - 1:,}" if ids else "token_ids is empty"
            )

    async def answer(self, request: tuple[TokenRequest | EmbedRequest, bool], writer: ResponseWriter) -> None:
        """See Answers."""
        asked, is_ours = request
        if isinstance(asked, EmbedRequest):
            for item in encode_vectors(await self._engine.embed(asked), is_own=is_ours):
                await writer.send(item)
            await writer.finish()
            return
        num_made, prompt_tokens = 0, len(asked.token_ids)
        async with contextlib.aclosing(self._engine.generate(asked)) as deltas:
            async for delta in deltas:
                num_made += len(delta.token_ids)
                item = encode_delta(delta, prompt_tokens, num_made)
                if delta.finish is not None:
                    await writer.finish(item)
                    return
                await writer.send(item)


class TextAnswers:
    """Of a ChatService without a tokenizer: OpenAI's bodies in, OpenAI's chunks out."""

    def __init__(self, service: ChatService) -> None:
        self._service = service

    def read(self, body: Any, request_id: str) -> tuple[ChatRequest, bool]:
        """See Answers; and whether an llmrun asks. What the service cannot honour it says when it is asked."""
        if is_own(body):
            request = msgspec.convert(body["llmrun"], OwnText, strict=False).chat
            return msgspec.structs.replace(request, id=request_id), True
        if not isinstance(body, dict):
            raise RequestError("the request is no object; an OpenAI chat or completion request is wanted")
        plain = {name: value for name, value in body.items() if name not in ("model", "nvext")}
        parse = parse_completion if plain.get("prompt") is not None else parse_chat
        call = parse(plain, request_id=request_id)
        if len(call.requests) != 1:
            raise RequestError(f"{len(call.requests)} prompts in one request; one is taken", field="prompt")
        return call.requests[0], False

    def describe(self, request: tuple[ChatRequest, bool]) -> str:
        """See Answers."""
        asked = request[0]
        return "a prompt" if asked.messages is None else f"{len(asked.messages)} messages"

    async def answer(self, request: tuple[ChatRequest, bool], writer: ResponseWriter) -> None:
        """See Answers."""
        asked, is_ours = request
        model, created = self._service.card.name, int(time.time())
        async with contextlib.aclosing(self._service.generate(asked)) as deltas:
            async for delta in deltas:
                await writer.send(encode_text(delta, asked, model, created, is_own=is_ours))
        await writer.finish()
