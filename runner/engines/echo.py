"""Echo engines, for trying everything around an engine: echo_core repeats token ids, echo_full repeats text.

The pace is LLMRUN_TOKEN_ECHO_DELAY_MS (or dynamo-run's DYN_TOKEN_ECHO_DELAY_MS), 10 ms a token or character.
Both run inside the launcher: there is nothing that could crash.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

from runner import __version__
from runner.engines.base import EngineSpec
from runner.engines.text_service import TextService, prompt_text
from runner.errors import EngineDied, UnsupportedField, UsageError
from runner.types import (
    ChatRequest,
    EmbedRequest,
    EmbedResult,
    EngineInfo,
    FinishReason,
    TextDelta,
    TokenDelta,
    TokenRequest,
    Usage,
)

_DEFAULT_DELAY_MS = 10.0
_MAX_RUNNING = 1024
_WITHOUT_EFFECT = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "length_penalty",
)  # fmt: skip
"""Sampling fields that cannot be violated by an answer that is given; honoured trivially."""


def make_core(spec: EngineSpec) -> EchoCore:
    """out=echo_core."""
    return EchoCore(spec)


def make_full(spec: EngineSpec) -> EchoFull:
    """out=echo_full."""
    return EchoFull(spec)


def echo_delay_s() -> float:
    """Seconds between tokens. Raises UsageError for a value that is no number of milliseconds."""
    for name in ("LLMRUN_TOKEN_ECHO_DELAY_MS", "DYN_TOKEN_ECHO_DELAY_MS"):
        text = os.environ.get(name)
        if text:
            if not text.replace(".", "", 1).isdigit():
                raise UsageError(f"{name} is {text!r}; give milliseconds, such as 10 or 0")
            return float(text) / 1000
    return _DEFAULT_DELAY_MS / 1000


class EchoCore:
    """An Engine: the prompt's ids, one at a time, up to the first stop id, then `stop`."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._delay_s = 0.0
        self._num_running = 0
        self._is_closed = False
        self._closed: asyncio.Event | None = None

    async def start(self) -> EngineInfo:
        """See Engine."""
        self._delay_s = echo_delay_s()
        context_length = self._spec.options.context_length or self._spec.card.context_length
        return EngineInfo(
            name=self._spec.name,
            version=__version__,
            context_length=context_length,
            max_running=self._spec.options.max_running or _MAX_RUNNING,
            capabilities=(*_WITHOUT_EFFECT, "min_tokens"),
        )

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine."""
        stops = frozenset(request.stop_token_ids)
        num_made = 0
        self._num_running += 1
        try:
            for token_id in request.token_ids:
                await asyncio.sleep(self._delay_s)
                self._check_open()
                if token_id in stops:
                    if num_made < request.min_tokens:
                        continue  # masked
                    yield TokenDelta(finish="stop", stop_token_id=token_id)
                    return
                num_made += 1
                if num_made >= request.max_tokens:
                    yield TokenDelta([token_id], "length")
                    return
                yield TokenDelta([token_id])
            yield TokenDelta(finish="stop")
        finally:
            self._num_running -= 1

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineDied("the engine echo_core was closed")

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Refused."""
        raise UnsupportedField("the engine echo_core makes no embeddings", field="model")

    async def health(self) -> None:
        """See Engine."""
        self._check_open()

    async def stats(self) -> dict[str, float]:
        """See Engine."""
        return {"num_running": float(self._num_running), "num_waiting": 0.0}

    async def close(self) -> None:
        """See Engine."""
        self._is_closed = True


class EchoFull(TextService):
    """A ChatService: the last user message (or the prompt), character by character. A token is a character."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._delay_s = 0.0
        self._num_running = 0

    async def start(self) -> EngineInfo:
        """See ChatService."""
        self._delay_s = echo_delay_s()
        self.info = EngineInfo(
            name=self.spec.name, version=__version__, max_running=_MAX_RUNNING, capabilities=_WITHOUT_EFFECT
        )
        return self.info

    async def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """See ChatService."""
        self._check(request)
        text, finish, stop_reason = _cut(prompt_text(request), request)
        num_choices = request.sampling.n or 1
        usage = Usage(prompt_tokens=len(prompt_text(request)), completion_tokens=len(text) * num_choices)
        self._num_running += 1
        try:
            if request.echo and isinstance(request.prompt, str):
                for index in range(num_choices):
                    yield TextDelta(index=index, text=request.prompt)
            for char in text:
                await asyncio.sleep(self._delay_s)
                for index in range(num_choices):
                    yield TextDelta(index=index, text=char)
            for index in range(num_choices):
                is_last = index == num_choices - 1
                yield TextDelta(index=index, finish=finish, stop_reason=stop_reason, usage=usage if is_last else None)
        finally:
            self._num_running -= 1

    def _check(self, request: ChatRequest) -> None:
        sampling = request.sampling
        for field in ("logprobs", "guided", "logit_bias", "beam_width"):
            if getattr(sampling, field) is not None:
                raise self._refuse(f"only repeats text; it cannot honour {field}", field)
        if sampling.bad_words or request.adapter is not None:
            raise self._refuse("only repeats text; it cannot honour bad_words or adapter", "bad_words")

    async def health(self) -> None:
        """Always well."""

    async def stats(self) -> dict[str, float]:
        """See ChatService."""
        return {"num_running": float(self._num_running), "num_waiting": 0.0}

    async def close(self) -> None:
        """Nothing to free."""


def _cut(text: str, request: ChatRequest) -> tuple[str, FinishReason, str | None]:
    """The answer: up to the first stop string, at most max_tokens characters; and why it ends."""
    found = [(at, stop) for stop in request.stop if stop and (at := text.find(stop, request.min_tokens)) >= 0]
    finish: FinishReason = "stop"
    stop_reason: str | None = None
    if found:
        at, stop_reason = min(found)
        text = text[: at + len(stop_reason)] if request.include_stop_str_in_output else text[:at]
    if request.max_tokens is not None and len(text) >= request.max_tokens and (found or text):
        if len(text) > request.max_tokens or not found:
            finish, stop_reason = "length", None
        text = text[: request.max_tokens]
    return text, finish, stop_reason
