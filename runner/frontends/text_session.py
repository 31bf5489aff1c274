"""ChatSession: one conversation and its settings. Knows no terminal: deltas come out, messages are kept.

Rules: a turn that failed leaves no trace; an answer that was stopped is kept as far as it came, and marked; a stop
before the first character takes the question back too, because templates want user and assistant to alternate.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from runner.errors import UsageError
from runner.openai_requests import NO_DEFAULTS, RequestDefaults, parse_chat
from runner.services import ChatService
from runner.timing import AnswerTimer
from runner.types import ChatRequest, TextDelta

_ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatSession:
    """Messages, system prompt, sampling, and what the last answer cost."""

    def __init__(self, service: ChatService, defaults: RequestDefaults = NO_DEFAULTS) -> None:
        self.service = service
        self.system = defaults.system
        self.fields: dict[str, Any] = {name: value for name, value in defaults.fields.items() if name != "messages"}
        """Request fields besides the messages, with OpenAI's names: temperature, max_tokens, stop ..."""
        self.messages: list[dict[str, Any]] = []
        """Without the system prompt."""
        self.stopped: set[int] = set()
        """Places in `messages` of answers that the user stopped."""
        self.used_tokens = 0
        """Context in use after the last answer; 0 is not known yet."""
        self.last_timer: AnswerTimer | None = None

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer; 0 is unknown."""
        return self.service.info.context_length or self.service.card.context_length

    def fill(self) -> str:
        """The context's fill for people: `ctx 512/2,048`."""
        total = f"{self.context_length:,}" if self.context_length else "?"
        return f"ctx {self.used_tokens:,}/{total}"

    def is_full(self) -> bool:
        """Whether the last answer ended because the context did."""
        return 0 < self.context_length <= self.used_tokens

    def request(self) -> ChatRequest:
        """The conversation as a request for the next answer."""
        body = {**self.fields, "messages": [*self._system_message(), *self.messages]}
        return parse_chat(body, request_id=f"chat-{uuid.uuid4().hex}").requests[0]

    def _system_message(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    async def ask(self, text: str) -> AsyncGenerator[TextDelta, None]:
        """The answer to a new user message. Closing the generator is stopping. Raises what the service raises."""
        before = (list(self.messages), set(self.stopped))
        self.messages.append({"role": "user", "content": text})
        async with contextlib.aclosing(self._answer(before)) as stream:
            async for delta in stream:
                yield delta

    async def regenerate(self) -> AsyncGenerator[TextDelta, None]:
        """Another answer to the last user message; a failure brings the old answer back. Raises UsageError."""
        if not self.messages:
            raise UsageError("nothing to answer again: the conversation is empty")
        before = (list(self.messages), set(self.stopped))
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
            self.stopped.discard(len(self.messages))
        async with contextlib.aclosing(self._answer(before)) as stream:
            async for delta in stream:
                yield delta

    async def _answer(self, before: tuple[list[dict[str, Any]], set[int]]) -> AsyncGenerator[TextDelta, None]:
        """Stream an answer to the messages as they are, then keep it; `before` comes back if there is none."""
        timer = AnswerTimer()
        parts: list[str] = []
        finished = failed = False
        try:
            async with contextlib.aclosing(self.service.generate(self.request())) as stream:
                async for delta in stream:
                    timer.push(delta)
                    parts.append(delta.text)
                    finished = finished or delta.finish is not None
                    yield delta
        except Exception:  # not swallowed: only noted for the finally
            failed = True
            raise
        finally:
            self._keep("".join(parts), timer, before, finished=finished, failed=failed)

    def _keep(
        self,
        text: str,
        timer: AnswerTimer,
        before: tuple[list[dict[str, Any]], set[int]],
        *,
        finished: bool,
        failed: bool,
    ) -> None:
        if failed or not (finished or text):
            self.messages, self.stopped = before
            return
        self.messages.append({"role": "assistant", "content": text})
        if not finished:
            self.stopped.add(len(self.messages) - 1)
        self.last_timer = timer
        if timer.usage:
            self.used_tokens = timer.usage.prompt_tokens + timer.usage.completion_tokens
        else:
            # A stopped answer has no usage; its question was not counted, so this is a little low until the next one.
            self.used_tokens += timer.num_tokens

    def clear(self) -> None:
        """Forget the conversation; system prompt and settings stay."""
        self.messages, self.stopped, self.used_tokens = [], set(), 0

    def save(self, path: Path) -> int:
        """Write the conversation as OpenAI messages; returns how many. Raises UsageError.

        A file that holds something else is not overwritten.
        """
        if path.exists() and not _is_chat(path):
            raise UsageError(f"{path} exists and is not a saved chat; choose another name")
        messages = [*self._system_message(), *self.messages]
        data = {**self.fields, "model": self.service.card.name, "messages": messages}
        try:
            path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
        return len(messages)

    def load(self, path: Path) -> int:
        """Go on with a saved conversation: a list of messages, or an object with `messages`. Raises UsageError."""
        messages = read_messages(path)
        system = [m["content"] for m in messages if m["role"] in ("system", "developer")]
        self.clear()
        self.messages = [m for m in messages if m["role"] not in ("system", "developer")]
        self.system = "\n\n".join(system) or self.system
        return len(messages)


def read_messages(path: Path) -> list[dict[str, Any]]:
    """The messages of a saved chat, checked. Raises UsageError naming the message at fault."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    messages = data.get("messages") if isinstance(data, dict) else data
    if not isinstance(messages, list):
        raise UsageError(f"{path}: expected a list of messages, or an object with `messages`")
    for place, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise UsageError(f"{path}: message {place} has role {role!r}; allowed: {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise UsageError(f"{path}: message {place} has no text as `content`; this frontend is for text only")
    return messages


def _is_chat(path: Path) -> bool:
    try:
        read_messages(path)
    except UsageError:
        return False
    return True
