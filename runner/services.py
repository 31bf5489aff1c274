"""ChatService: what a frontend talks to. Messages in, text out.

`ChatPipeline(card, engine)` is the bridge from an Engine; text-level engines (echo_full, pystr) implement it directly.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from model_cards.card import ModelCard
from runner.types import ChatRequest, EmbedResult, EngineInfo, TextDelta


class ChatService(Protocol):
    """One served model. Frontends see nothing else of it."""

    card: ModelCard
    info: EngineInfo
    """Set by start()."""

    async def start(self) -> EngineInfo:
        """Ready when it returns. Raises EngineStartFailed."""

    def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """One stream; closing the generator is the only cancel. Wrap it in contextlib.aclosing."""

    async def embed(self, request_id: str, inputs: list[str | list[int]]) -> EmbedResult:
        """One vector for each input."""

    def render(self, request: ChatRequest) -> str:
        """The prompt text that the chat template makes of the request's messages."""

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text."""

    def detokenize(self, token_ids: list[int], *, skip_special: bool = False) -> str:
        """Text of token ids."""

    async def health(self) -> None:
        """Returns when requests can be served; raises EngineDied or EngineBusy."""

    async def stats(self) -> dict[str, Any]:
        """Numbers for /metrics."""

    async def close(self) -> None:
        """Safe twice."""


class AdapterService(Protocol):
    """What a ChatService can do besides whose info has the capability `load_adapter`; its `info` changes with it."""

    async def load_adapter(self, name: str, path: str, *, replace: bool = False) -> None:
        """Load a LoRA adapter; requests may name it when this returns. Raises RequestError or EngineError."""

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that run with it end as they would have. Raises UnknownAdapter."""
