"""Answer: SGLang's chunks of one request as deltas of ours. Pure bookkeeping; knows no Engine.

SGLang's `output_ids` and log-probabilities are cumulative, and the stop token is among the ids (facts of 0.4.6 to
0.5.23); ours are new ones only, without it.
"""

from __future__ import annotations

from typing import Any

from runner.errors import EngineFailed, RequestError
from runner.types import FinishReason, TokenDelta, TokenLogprob, TokenRequest

_LOWEST = -1e30
"""A log-probability below this is that of a token which was masked."""


class Answer:
    """What was seen of one answer. `extra_stops`: ids that end it besides those of the request."""

    def __init__(self, request: TokenRequest, extra_stops: frozenset[int] = frozenset()) -> None:
        self._stops = frozenset(request.stop_token_ids) | extra_stops
        self._min_tokens = request.min_tokens
        self._wants_logprobs = request.sampling.logprobs is not None
        self._num_seen = 0
        self._is_cache_told = False
        self.is_over = False
        """SGLang itself has ended it: there is nothing to abort."""

    def push(self, chunk: dict[str, Any]) -> TokenDelta | None:
        """The delta of a chunk; None where it brings nothing new. Raises RequestError or EngineFailed for an abort."""
        meta = chunk["meta_info"]
        start, ended = self._num_seen, meta["finish_reason"]
        new = list(chunk["output_ids"][start:])
        self.is_over = ended is not None
        if self.is_over and ended["type"] == "abort":
            raise _abort_error(ended)
        self._num_seen += len(new)
        kept, finish, stop_id = self._cut(new, start, ended)
        if not kept and finish is None:
            return None
        logprobs = _logprobs(meta, start, kept) if self._wants_logprobs else None
        return TokenDelta(kept, finish, logprobs, stop_id, self._cached(meta))

    def _cut(
        self, new: list[int], start: int, ended: dict[str, Any] | None
    ) -> tuple[list[int], FinishReason | None, int | None]:
        """Ids without the stop token, and the end that SGLang or a stop id of ours makes."""
        for at, token in enumerate(new):
            if token in self._stops and start + at >= self._min_tokens:
                return new[:at], "stop", token
        if ended is None:
            return new, None, None
        if ended["type"] == "length":
            return new, "length", None
        matched = ended.get("matched")
        if not isinstance(matched, int):
            raise EngineFailed(f"SGLang ended the answer at {matched!r}; the model may compute no usable logits")
        return (new[:-1] if new[-1:] == [matched] else new), "stop", matched

    def _cached(self, meta: dict[str, Any]) -> int | None:
        """On the first delta only."""
        if self._is_cache_told:
            return None
        self._is_cache_told = True
        cached = meta.get("cached_tokens")
        return int(cached) if cached is not None else None


def _logprobs(meta: dict[str, Any], start: int, ids: list[int]) -> list[TokenLogprob]:
    """Rows of `ids`, the first of which is token number `start` of the answer."""
    chosen = meta["output_token_logprobs"][start : start + len(ids)]
    tops = (meta.get("output_top_logprobs") or [])[start : start + len(ids)]
    rows = []
    for at, (logprob, token, *_) in enumerate(chosen):
        top = [(int(t), float(value)) for value, t, *_ in (tops[at] or [])] if at < len(tops) else []
        rows.append(TokenLogprob(int(token), float(logprob), [pair for pair in top if pair[1] > _LOWEST]))
    return rows


def _abort_error(ended: dict[str, Any]) -> RequestError | EngineFailed:
    message = str(ended.get("message") or "SGLang aborted the request without saying why")
    status = ended.get("status_code")
    if status is not None and 400 <= int(status) < 500:
        return RequestError(message)
    return EngineFailed(message)
