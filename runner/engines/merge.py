"""Merging deltas of one stream that wait for a slow reader: one delta then carries several tokens.

Owns the rule of what may be joined. Memory stays bounded by the answer itself, whoever is slow.
"""

from __future__ import annotations

from runner.types import TextDelta, TokenDelta


def own_delta(delta: TokenDelta) -> TokenDelta:
    """The same delta with lists of its own, so that merge_tokens may extend them."""
    logprobs = None if delta.logprobs is None else list(delta.logprobs)
    return TokenDelta(list(delta.token_ids), delta.finish, logprobs, delta.stop_token_id, delta.cached_tokens)


def merge_tokens(first: TokenDelta, second: TokenDelta) -> TokenDelta:
    """Both as one. EXTENDS the lists of `first` (O(new tokens)), so nobody else may hold them."""
    logprobs = first.logprobs
    if logprobs is None:
        logprobs = second.logprobs
    elif second.logprobs is not None:
        logprobs.extend(second.logprobs)
    first.token_ids.extend(second.token_ids)
    return TokenDelta(
        first.token_ids,
        second.finish or first.finish,
        logprobs,
        second.stop_token_id if second.stop_token_id is not None else first.stop_token_id,
        second.cached_tokens if second.cached_tokens is not None else first.cached_tokens,
    )


def push_text(waiting: list[TextDelta], delta: TextDelta) -> None:
    """Append to `waiting`, joined to the last delta of the same choice where nothing is lost by it."""
    for at in range(len(waiting) - 1, -1, -1):
        if waiting[at].index == delta.index:
            joined = _join(waiting[at], delta)
            if joined is None:
                break
            del waiting[at]
            waiting.append(joined)
            return
    waiting.append(delta)


def _join(first: TextDelta, second: TextDelta) -> TextDelta | None:
    """Both as one, or None: tool calls and text keep their order only in deltas of their own."""
    if first.finish or first.tool_calls or second.tool_calls or first.usage or (first.text and second.reasoning):
        return None
    reasoning = None
    if first.reasoning is not None or second.reasoning is not None:
        reasoning = (first.reasoning or "") + (second.reasoning or "")
    logprobs = None
    if first.logprobs is not None or second.logprobs is not None:
        logprobs = [*(first.logprobs or []), *(second.logprobs or [])]
    return TextDelta(
        index=first.index,
        text=first.text + second.text,
        reasoning=reasoning,
        token_ids=first.token_ids + second.token_ids,
        logprobs=logprobs,
        finish=second.finish,
        stop_reason=second.stop_reason,
        usage=second.usage,
        warnings=first.warnings + second.warnings,
    )
