"""Requests and answers as text, for engines that tokenize themselves (Dynamo's ModelInput.Text): OpenAI's chunks.

Between two llmrun the field `llmrun` holds the request and the deltas themselves, so that nothing is lost.
"""

from __future__ import annotations

from typing import Any

import msgspec

from runner.errors import EngineFailed
from runner.types import ChatRequest, TextDelta


class OwnText(msgspec.Struct, frozen=True, kw_only=True):
    """In a request's field `llmrun`."""

    chat: ChatRequest


def own_request(request: ChatRequest) -> dict[str, Any]:
    """The field `llmrun` of a request."""
    return dict(msgspec.to_builtins(OwnText(chat=request), str_keys=True))


def is_own(body: Any) -> bool:
    """Whether an llmrun asks."""
    return isinstance(body, dict) and body.get("llmrun") is not None


def encode_text(delta: TextDelta, request: ChatRequest, model: str, created: int, *, is_own: bool) -> dict[str, Any]:
    """One delta for an llmrun, or as OpenAI's chunk."""
    if is_own:
        return {"llmrun": msgspec.to_builtins(delta)}
    is_chat = request.messages is not None
    choice: dict[str, Any] = {"index": delta.index, "finish_reason": delta.finish, "logprobs": None}
    if is_chat:
        content = {"role": "assistant", "content": delta.text}
        if delta.reasoning:
            content["reasoning_content"] = delta.reasoning
        choice["delta"] = {**content, "tool_calls": delta.tool_calls} if delta.tool_calls else content
    else:
        choice["text"] = delta.text
    chunk: dict[str, Any] = {
        "id": request.id,
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [choice],
    }
    if delta.usage is not None:
        used = (delta.usage.prompt_tokens, delta.usage.completion_tokens)
        chunk["usage"] = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)}
    return chunk


def decode_own_text(item: Any) -> TextDelta | None:
    """The delta of an llmrun's item; None for one of another program. Raises EngineFailed."""
    said = item.get("llmrun") if isinstance(item, dict) else None
    if said is None:
        return None
    try:
        return msgspec.convert(said, TextDelta)
    except msgspec.ValidationError as error:
        raise EngineFailed(f"the worker sent what is no delta of text: {error}") from None
