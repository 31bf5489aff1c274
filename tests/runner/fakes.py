"""Stand-ins for tests above the engines: an engine that says what a script says, and a small real tokenizer.

Does not fake tokenizers or templates: those are the real ones, over a byte-level vocabulary made here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from model_cards.card import ModelCard, TokenizerRef
from runner.catalog import Catalog
from runner.types import (
    ChatRequest,
    EmbedRequest,
    EmbedResult,
    EngineInfo,
    TextDelta,
    TokenDelta,
    TokenRequest,
    Usage,
)

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, EOS, IM_START, IM_END = 256, 257, 258, 259
WORDS = ("Hello", "Ġworld", "world", "STOP", "ĠSTOP", "ĠPretoria", "ing")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALL = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "logit_bias", "logprobs", "bad_words_ids", "beam_width", "length_penalty",
    "min_tokens", "embed",
    "guided.json_schema", "guided.json_object", "guided.regex", "guided.grammar", "guided.choice",
)  # fmt: skip
"""Capabilities of an engine that honours everything but adapters."""


def write_tokenizer(path: Path, *, add_bos: bool = False) -> None:
    """A byte-level BPE: ids 0-255 are the bytes, then SPECIALS, then merges up to WORDS."""
    alphabet = _byte_chars()
    vocab = {char: number for number, char in enumerate(alphabet)}
    vocab |= {special: len(vocab) + number for number, special in enumerate(SPECIALS)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.save(str(path))


def _byte_chars() -> list[str]:
    """GPT-2's character for each byte, in the order of the bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    fresh = itertools.count(256)
    return [chr(byte) if byte in plain else chr(next(fresh)) for byte in range(256)]


def make_card(folder: Path, **fields: object) -> ModelCard:
    """A card over that tokenizer, with a ChatML template; `fields` replace its own."""
    add_bos = bool(fields.get("add_bos"))
    path = folder / ("tokenizer-bos.json" if add_bos else "tokenizer.json")
    if not path.exists():
        write_tokenizer(path, add_bos=add_bos)
    base: dict[str, object] = {
        "name": "toy",
        "source": "toy",
        "context_length": 512,
        "vocab_size": tokenizers.Tokenizer.from_file(str(path)).get_vocab_size(),
        "bos_token_id": BOS,
        "eos_token_ids": (EOS, IM_END),
        "tokenizer": TokenizerRef(kind="hf", path=str(path)),
        "chat_template": CHATML,
        "special_tokens": {"bos_token": "<s>", "eos_token": "</s>"},
    }
    return ModelCard(**{**base, **fields})  # type: ignore[arg-type]


Script = Callable[[TokenRequest], Sequence[TokenDelta | BaseException | None]]
"""What the engine does for a request; an exception is raised, None waits until the stream is closed."""


class ScriptedEngine:
    """Says what the script says; remembers its requests, and which streams were closed early."""

    def __init__(self, script: Script, *, context_length: int = 512, capabilities: tuple[str, ...] = ALL) -> None:
        self.script = script
        self.info = EngineInfo(name="scripted", context_length=context_length, max_running=4, capabilities=capabilities)
        self.requests: list[TokenRequest] = []
        self.closed_early: list[str] = []
        self.num_open = 0
        self.most_open = 0
        self.is_closed = False

    async def start(self) -> EngineInfo:
        return self.info

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        self.requests.append(request)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        is_done = False
        try:
            for item in self.script(request):
                await asyncio.sleep(0)
                if item is None:
                    await asyncio.Event().wait()
                elif isinstance(item, BaseException):
                    is_done = True
                    raise item
                else:
                    is_done = item.finish is not None
                    yield item
            is_done = True
        finally:
            self.num_open -= 1
            if not is_done:
                self.closed_early.append(request.id)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        vectors = [b"\x00\x00\x80\x3f" for _ in request.inputs]
        return EmbedResult(vectors=vectors, prompt_tokens=sum(map(len, request.inputs)))

    async def health(self) -> None:
        return None

    async def stats(self) -> dict[str, float]:
        return {"num_running": float(self.num_open)}

    async def close(self) -> None:
        self.is_closed = True


def says(*pieces: list[int], finish: str = "stop", stop_token_id: int | None = EOS) -> Script:
    """A script: one delta for each piece, then the end."""
    last = TokenDelta([], finish, None, stop_token_id)  # type: ignore[arg-type]
    return lambda request: [*(TokenDelta(list(piece)) for piece in pieces), last]


class TextService:
    """A ChatService without an engine: `answer(request)` gives deltas, exceptions, or None (wait until closed)."""

    def __init__(
        self, answer: Callable[[ChatRequest], Sequence[Any]], *, name: str = "toy", max_running: int = 4
    ) -> None:
        self.card = ModelCard(name=name, source=name)
        self.info = EngineInfo(name="text", max_running=max_running)
        self.answer = answer
        self.requests: list[ChatRequest] = []
        self.num_open = 0
        self.most_open = 0

    async def start(self) -> EngineInfo:
        return self.info

    async def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        self.requests.append(request)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            for item in self.answer(request):
                await asyncio.sleep(0)
                if item is None:
                    await asyncio.Event().wait()
                elif isinstance(item, float):
                    await asyncio.sleep(item)
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            self.num_open -= 1

    async def embed(self, request_id: str, inputs: list[str | list[int]]) -> EmbedResult:
        return EmbedResult(vectors=[b"\x00\x00\x80\x3f"] * len(inputs), prompt_tokens=len(inputs))

    def render(self, request: ChatRequest) -> str:
        return str(request.messages)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def detokenize(self, token_ids: list[int], *, skip_special: bool = False) -> str:
        return bytes(token_ids).decode()

    async def health(self) -> None:
        return None

    async def stats(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        return None


def last_text(request: ChatRequest) -> str:
    """What the user said last."""
    return str((request.messages or [{"content": request.prompt}])[-1]["content"])


def shout(request: ChatRequest) -> list[TextDelta]:
    """An answer: the last text in capitals, a word a delta; 3 tokens in, a token a word out."""
    words = last_text(request).upper().split()
    usage = Usage(prompt_tokens=3, completion_tokens=len(words))
    texts = [word if not place else f" {word}" for place, word in enumerate(words)]
    return [*(TextDelta(text=text) for text in texts), TextDelta(finish="stop", usage=usage)]


def catalog_of(*services: TextService) -> Catalog:
    """A catalog that serves them."""
    catalog = Catalog()
    for service in services:
        catalog.add(service)
    return catalog
