"""TextDeltas -> OpenAI response objects: whole completions by folding, and the bytes of streamed chunks.

Chunks are built by hand around what is constant in a stream: only the text is escaped for each one. Errors and
usage are made here too, so that HTTP and batch files say the same. Knows nothing of HTTP or of who computes the deltas.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

from runner.types import TextDelta, TextLogprob, Usage

ApiKind = Literal["chat", "completion"]
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have; vLLM's value."""

encode = msgspec.json.Encoder().encode


def error_object(
    message: str, *, kind: str, code: str | None, param: str | None = None, **more: int | float | None
) -> dict[str, Any]:
    """OpenAI's error object. `kind` is its type, `more` are numbers that a client may act on."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code, **more}}


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def add_usage(one: Usage | None, other: Usage | None) -> Usage | None:
    """The sum over several prompts of one body."""
    if one is None or other is None:
        return one or other
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
    )


def chat_logprobs(entries: list[TextLogprob]) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""
    content = [
        {**_token_logprob(entry), "top_logprobs": [_token_logprob(top) for top in entry.top]} for entry in entries
    ]
    return {"content": content, "refusal": None}


def _token_logprob(entry: TextLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": max(entry.logprob, MIN_LOGPROB), "bytes": entry.bytes}


def completion_logprobs(entries: list[TextLogprob], offset: int) -> dict[str, Any]:
    """The `logprobs` of a completion choice; `offset` is the length of the text before the first entry."""
    offsets: list[int] = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [max(entry.logprob, MIN_LOGPROB) for entry in entries],
        "top_logprobs": [{top.token: max(top.logprob, MIN_LOGPROB) for top in entry.top} for entry in entries],
        "text_offset": offsets,
    }


class Choice:
    """One choice while it is folded."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: list[dict[str, Any]] = []
        self.logprobs: list[TextLogprob] | None = None
        self.finish: str | None = None
        self.stop_reason: str | int | None = None

    def add(self, delta: TextDelta) -> None:
        """Append what is new."""
        if delta.text:
            self.text.append(delta.text)
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += delta.logprobs
        for call in delta.tool_calls or ():
            _merge_tool_call(self.tool_calls, call)
        if delta.finish is not None:
            self.finish = delta.finish
            self.stop_reason = delta.stop_reason


def _merge_tool_call(calls: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Streamed tool calls arrive in pieces that name the index of their call."""
    index = new.get("index", len(calls))
    if index >= len(calls):
        call = {key: value for key, value in new.items() if key != "index"}
        calls.append({"type": "function", **call, "function": {"arguments": "", **new.get("function", {})}})
        return
    function, piece = calls[index]["function"], new.get("function", {})
    function["arguments"] += piece.get("arguments") or ""


class Fold:
    """All choices of one body, folded into one response object."""

    def __init__(
        self, kind: ApiKind, *, response_id: str, model: str, num_choices: int, created: int | None = None
    ) -> None:
        self._kind = kind
        self._id = response_id
        self._model = model
        self._created = int(time.time()) if created is None else created
        self._choices = [Choice() for _ in range(num_choices)]
        self._warnings: list[str] = []
        self.usage: Usage | None = None

    def add(self, delta: TextDelta) -> None:
        """Take one delta; `delta.index` counts over all prompts."""
        self._choices[delta.index].add(delta)
        self._warnings += delta.warnings
        if delta.usage is not None:
            self.usage = add_usage(self.usage, delta.usage)

    def warn(self, warnings: tuple[str, ...]) -> None:
        """What was not honoured (--lenient)."""
        self._warnings += warnings

    def result(self) -> dict[str, Any]:
        """The response object."""
        chat = self._kind == "chat"
        make = _chat_choice if chat else _completion_choice
        out: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion" if chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [make(index, choice) for index, choice in enumerate(self._choices)],
            "usage": usage_object(self.usage or Usage(prompt_tokens=0, completion_tokens=0)),
        }
        if self._warnings:
            out["warnings"] = list(dict.fromkeys(self._warnings))
        return out


def _chat_choice(index: int, choice: Choice) -> dict[str, Any]:
    text = "".join(choice.text)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if choice.tool_calls:
        message["tool_calls"] = choice.tool_calls
        message["content"] = text or None
    if choice.reasoning:
        message["reasoning_content"] = message["reasoning"] = "".join(choice.reasoning)
    logprobs = None if choice.logprobs is None else chat_logprobs(choice.logprobs)
    return _choice({"index": index, "message": message, "logprobs": logprobs}, choice)


def _completion_choice(index: int, choice: Choice) -> dict[str, Any]:
    logprobs = None if choice.logprobs is None else completion_logprobs(choice.logprobs, 0)
    return _choice({"index": index, "text": "".join(choice.text), "logprobs": logprobs}, choice)


def _choice(out: dict[str, Any], choice: Choice) -> dict[str, Any]:
    out["finish_reason"] = choice.finish
    if choice.stop_reason is not None:
        out["stop_reason"] = choice.stop_reason
    return out


class ChunkWriter:
    """Bytes of the SSE events of one stream: `first()`, then `chunk(delta)` for each delta, then `last()`."""

    def __init__(
        self,
        kind: ApiKind,
        *,
        response_id: str,
        model: str,
        num_choices: int = 1,
        include_usage: bool = False,
        created: int | None = None,
    ) -> None:
        self._chat = kind == "chat"
        self._include_usage = include_usage
        self._head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            encode(response_id),
            b"chat.completion.chunk" if self._chat else b"text_completion",
            int(time.time()) if created is None else created,
            encode(model),
        )
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        inner = b'"delta":{"content":' if self._chat else b'"text":'
        self._text_heads = [self._head + b'{"index":%d,%b' % (index, inner) for index in range(num_choices)]
        self._text_tail = (b"}" if self._chat else b"") + b',"logprobs":null,"finish_reason":null}' + self._tail
        self._offsets: dict[int, int] = {}
        self._warnings: list[str] = []
        self.usage: Usage | None = None

    def first(self, warnings: tuple[str, ...] = ()) -> bytes:
        """What opens the stream: for chats the role of each choice. `warnings` go out with the first delta."""
        self._warnings += warnings
        if not self._chat:
            return b""
        role = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return b"".join(
            self._head + b'{"index":%d,%b' % (index, role) + self._tail for index in range(len(self._text_heads))
        )

    def chunk(self, delta: TextDelta) -> bytes:
        """The event of one delta; empty if it says nothing new. Plain text, the token path, is hand-built."""
        if (
            delta.text
            and delta.finish is None
            and delta.logprobs is None
            and delta.usage is None
            and not (delta.reasoning or delta.tool_calls or delta.warnings or self._warnings)
        ):
            return self._text_heads[delta.index] + encode(delta.text) + self._text_tail
        return self._rare_chunk(delta)

    def _rare_chunk(self, delta: TextDelta) -> bytes:
        """Everything that is not just text: finish, logprobs, reasoning, tool calls, warnings."""
        self._warnings += delta.warnings
        self.usage = add_usage(self.usage, delta.usage)
        body = self._delta_body(delta)
        if not (delta.text or body or delta.finish or delta.logprobs or self._warnings):
            return b""
        choice: dict[str, Any] = {"index": delta.index}
        choice.update({"delta": body} if self._chat else {"text": delta.text})
        choice["logprobs"] = self._logprobs(delta)
        choice["finish_reason"] = delta.finish
        if delta.stop_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return self._head + encode(choice) + self._tail_with_warnings()

    def _delta_body(self, delta: TextDelta) -> dict[str, Any]:
        if not self._chat:
            return {}
        body: dict[str, Any] = {}
        if delta.text:
            body["content"] = delta.text
        if delta.reasoning:
            body["reasoning_content"] = body["reasoning"] = delta.reasoning
        if delta.tool_calls:
            body["tool_calls"] = delta.tool_calls
        return body

    def _logprobs(self, delta: TextDelta) -> dict[str, Any] | None:
        if delta.logprobs is None:
            return None
        if self._chat:
            return chat_logprobs(delta.logprobs)
        offset = self._offsets.get(delta.index, 0)
        self._offsets[delta.index] = offset + sum(len(entry.token) for entry in delta.logprobs)
        return completion_logprobs(delta.logprobs, offset)

    def _tail_with_warnings(self) -> bytes:
        if not self._warnings:
            return self._tail
        warnings, self._warnings = self._warnings, []
        return b'],"warnings":%b%b' % (encode(warnings), self._tail[1:])

    def last(self) -> bytes:
        """The usage chunk if it was asked for, and the end mark."""
        if not self._include_usage:
            return DONE
        usage = usage_object(self.usage or Usage(prompt_tokens=0, completion_tokens=0))
        return self._head + b'],"usage":' + encode(usage) + b"}\n\n" + DONE


def error_event(error: dict[str, Any]) -> bytes:
    """The SSE event of an error object; OpenAI's clients raise APIError at it. It comes last: no [DONE] follows."""
    return b"data: " + encode(error) + b"\n\n"
