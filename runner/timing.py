"""How long an answer took: time to first token, tokens a second. Knows deltas, no frontend."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from runner.services import ChatService
from runner.types import ChatRequest, TextDelta, Usage


class AnswerTimer:
    """Fed with the deltas of one answer as they come. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()
        self._first: float | None = None
        self._last = self._began
        self._num_tokens = 0
        self._num_first = 0
        self.usage: Usage | None = None

    def push(self, delta: TextDelta) -> None:
        """Note one delta."""
        self._last = self._clock()
        num = len(delta.token_ids) or int(bool(delta.text or delta.reasoning))
        if num and self._first is None:
            self._first, self._num_first = self._last, num
        self._num_tokens += num
        self.usage = delta.usage or self.usage

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer: as the engine counts, else as seen."""
        return self.usage.completion_tokens if self.usage else self._num_tokens

    @property
    def first_token_s(self) -> float | None:
        """Seconds to the first token; None if there was none."""
        return None if self._first is None else self._first - self._began

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed: tokens after the first arrival over the time since; None where that says nothing."""
        span = 0.0 if self._first is None else self._last - self._first
        later = self.num_tokens - self._num_first
        return later / span if span > 0 and later > 0 else None

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.num_tokens:,} tokens"]
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:,.1f} tokens/s")
        if self.first_token_s is not None:
            parts.append(f"first after {self.first_token_s * 1000:,.0f} ms")
        if self.usage:
            cached = f" ({self.usage.cached_tokens:,} cached)" if self.usage.cached_tokens else ""
            parts.append(f"prompt {self.usage.prompt_tokens:,} tokens{cached}")
        return ", ".join(parts)


class TimedService:
    """A service that says after every answer how fast it was; all else is the wrapped service's."""

    def __init__(self, service: ChatService, say: Callable[[str], None]) -> None:
        self._service = service
        self._say = say

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """As the wrapped service's."""
        timer = AnswerTimer()
        async with contextlib.aclosing(self._service.generate(request)) as stream:
            async for delta in stream:
                timer.push(delta)
                yield delta
        self._say(timer.summary())
