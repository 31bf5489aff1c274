"""What text-level engines (echo_full, pystr) share as a ChatService: everything but `generate`.

They have no tokenizer, so a "token" here is a character (or a chunk), and whatever needs a vocabulary is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from model_cards.card import ModelCard
from runner.engines.base import EngineSpec
from runner.errors import RequestError, UnsupportedField
from runner.types import ChatRequest, EmbedResult, EngineInfo


def named_card(spec: EngineSpec) -> ModelCard:
    """The card, named after the engine where the user gave no name."""
    return spec.card if spec.card.name else msgspec.structs.replace(spec.card, name=spec.name)


def prompt_text(request: ChatRequest) -> str:
    """The text that is answered: the raw prompt, or the last user message. Raises RequestError."""
    if isinstance(request.prompt, str):
        return request.prompt
    if request.prompt is not None:
        raise RequestError("this engine has no tokenizer; give the prompt as text, not as token ids", field="prompt")
    for message in reversed(request.messages or []):
        if message.get("role") == "user":
            return content_text(message.get("content"))
    raise RequestError("there is no user message to answer", field="messages")


def content_text(content: object) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


class TextService:
    """Base of a ChatService without a tokenizer."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.card = named_card(spec)
        self.info = EngineInfo(name=spec.name)
        self.on_progress: Callable[[str, float | None], None] | None = None

    def _refuse(self, what: str, field: str) -> UnsupportedField:
        return UnsupportedField(f"the engine {self.spec.name} {what}", field=field)

    async def embed(self, request_id: str, inputs: list[str | list[int]]) -> EmbedResult:
        """Refused."""
        raise self._refuse("makes no embeddings", "model")

    def render(self, request: ChatRequest) -> str:
        """No chat template is used: the text that is answered."""
        return prompt_text(request)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Refused."""
        raise self._refuse("has no tokenizer", "model")

    def detokenize(self, token_ids: list[int], *, skip_special: bool = False) -> str:
        """Refused."""
        raise self._refuse("has no tokenizer", "model")
