"""OpenAI dictionaries at the border of a pystr file: ChatRequest -> request, chunk -> TextDelta, or a clear refusal."""

from __future__ import annotations

from typing import Any

import msgspec

from runner.errors import EngineFailed
from runner.types import ChatRequest, FinishReason, TextDelta, Usage

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "cancelled": "cancelled",
    "content_filter": "stop",
}
_COUNTS = ("prompt_tokens", "completion_tokens")
_ALLOWED = 'an OpenAI chunk: {"choices": [{"index": 0, "delta": {"content": "text"}, "finish_reason": None}]}'


def chat_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The OpenAI request; only fields that were asked for are there."""
    body: dict[str, Any] = {"model": request.model or model, "stream": True}
    if request.messages is not None:
        body["messages"] = request.messages
    else:
        body["prompt"] = request.prompt
    sampling = msgspec.to_builtins(request.sampling, str_keys=True)
    guided = sampling.pop("guided", None) or {}
    body |= sampling
    body |= {f"guided_{name}": value for name, value in guided.items()}
    for name in ("max_tokens", "tools", "documents"):
        if getattr(request, name) is not None:
            body[name] = getattr(request, name)
    for name in ("min_tokens", "ignore_eos", "echo"):
        if getattr(request, name):
            body[name] = getattr(request, name)
    for name in ("stop", "stop_token_ids"):
        if getattr(request, name):
            body[name] = list(getattr(request, name))
    return body


class ChunkReader:
    """Translates the chunks of one request; finish reasons wait for the end, because the last delta has the usage."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._finishes: dict[int, FinishReason] = {}
        self._seen: set[int] = set()
        self._num_chunks = 0
        self._usage: Usage | None = None

    def read(self, chunk: Any) -> list[TextDelta]:
        """Deltas of one chunk. Raises EngineFailed naming what was got and what is allowed."""
        if not isinstance(chunk, dict) or not isinstance(chunk.get("choices"), (list, tuple)):
            raise self._wrong(chunk)
        self._read_usage(chunk)
        deltas = [self._choice(choice, chunk) for choice in chunk["choices"]]
        return [delta for delta in deltas if delta is not None]

    def finish(self) -> list[TextDelta]:
        """The last delta of each choice. Usage that the file did not give counts a chunk as a token."""
        usage = self._usage or Usage(prompt_tokens=0, completion_tokens=self._num_chunks)
        indexes = sorted(self._seen or {0})
        return [
            TextDelta(
                index=index, finish=self._finishes.get(index, "stop"), usage=usage if index == indexes[-1] else None
            )
            for index in indexes
        ]

    def _choice(self, choice: Any, chunk: Any) -> TextDelta | None:
        if not isinstance(choice, dict) or type(choice.get("index", 0)) is not int:
            raise self._wrong(chunk)
        index = choice.get("index", 0)
        content = choice.get("delta") if "delta" in choice else {"content": choice.get("text")}
        if not isinstance(content, dict):
            raise self._wrong(chunk)
        self._seen.add(index)
        text = self._text(content, "content", chunk)
        reasoning = self._text(content, "reasoning_content", chunk)
        calls = content.get("tool_calls")
        if calls is not None and not (
            isinstance(calls, (list, tuple)) and all(isinstance(call, dict) for call in calls)
        ):
            raise self._wrong(chunk, " (tool_calls must be a list of objects)")
        if index in self._finishes and (text or reasoning or calls):
            raise self._wrong(chunk, f" (choice {index} had its finish_reason before)")
        self._read_finish(choice.get("finish_reason"), index, chunk)
        if not (text or reasoning or calls):
            return None
        self._num_chunks += 1
        return TextDelta(index=index, text=text or "", reasoning=reasoning, tool_calls=list(calls) if calls else None)

    def _text(self, content: dict[str, Any], name: str, chunk: Any) -> str | None:
        text = content.get(name)
        if text is not None and not isinstance(text, str):
            raise self._wrong(chunk, f" ({name} must be text)")
        return text

    def _read_finish(self, reason: Any, index: int, chunk: Any) -> None:
        if reason is None:
            return
        if not isinstance(reason, str) or reason not in _FINISH:
            raise self._wrong(chunk, f" (finish_reason {reason!r} is unknown; allowed: {', '.join(_FINISH)})")
        self._finishes[index] = _FINISH[reason]

    def _read_usage(self, chunk: dict[str, Any]) -> None:
        usage = chunk.get("usage")
        if usage is None:
            return
        counts: list[Any] = [usage.get(name) or 0 for name in _COUNTS] if isinstance(usage, dict) else [None]
        if any(type(count) is not int or count < 0 for count in counts):
            raise self._wrong(chunk, f" (usage must have numbers: {', '.join(_COUNTS)})")
        self._usage = Usage(prompt_tokens=counts[0], completion_tokens=counts[1])

    def _wrong(self, chunk: Any, more: str = "") -> EngineFailed:
        text = repr(chunk)
        shown = f"{text[:200]}{'...' if len(text) > 200 else ''} ({type(chunk).__name__})"
        return EngineFailed(f"generate in {self._path} yielded {shown}; allowed is {_ALLOWED}{more}")
