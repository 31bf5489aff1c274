"""Answer: TensorRT-LLM's outputs of one request as deltas of ours. Pure bookkeeping; knows no Engine.

`token_ids` and `logprobs` of a CompletionOutput are cumulative (tensorrt_llm/executor/result.py); the token that ended
the answer may be among them (end id) or cut off again (stop words). Ours are new ones only, without it.
"""

from __future__ import annotations

from typing import Any

from runner.errors import EngineFailed
from runner.types import FinishReason, TokenDelta, TokenLogprob, TokenRequest


class Answer:
    """What was seen of one answer. `extra_stops`: ids that end it besides those of the request."""

    def __init__(self, request: TokenRequest, extra_stops: frozenset[int] = frozenset()) -> None:
        self._stops = frozenset(request.stop_token_ids) | extra_stops
        self._min_tokens = request.min_tokens
        self._num_logprobs = request.sampling.logprobs
        self._num_seen = 0

    def push(self, output: Any) -> TokenDelta | None:
        """The delta of an output; None where it brings nothing new. Raises EngineFailed for an end that is none."""
        start, reason = self._num_seen, output.finish_reason
        new = [int(token) for token in output.token_ids[start:]]
        self._num_seen = max(start, len(output.token_ids))
        kept, finish, stop = self._cut(new, start, reason, output.stop_reason)
        if not kept and finish is None:
            return None
        return TokenDelta(kept, finish, self._rows(output.logprobs, start, kept), stop)

    def _cut(
        self, new: list[int], start: int, reason: str | None, stop_reason: Any
    ) -> tuple[list[int], FinishReason | None, int | None]:
        for at, token in enumerate(new):
            if token in self._stops and start + at >= self._min_tokens:
                return new[:at], "stop", token
        if reason is None:
            return new, None, None
        if reason == "length":
            return new, "length", None
        if reason == "stop":
            told = stop_reason if isinstance(stop_reason, int) else None
            return new, "stop", told if told is not None else next(iter(self._stops), None)
        raise EngineFailed(f"TensorRT-LLM ended the answer with {reason!r}")

    def _rows(self, logprobs: Any, start: int, ids: list[int]) -> list[TokenLogprob] | None:
        """Of `ids`, the first of which is token `start`. A row is {token id: Logprob}, or one number (0.x)."""
        if self._num_logprobs is None:
            return None
        rows = list(logprobs or [])[start : start + len(ids)]
        if len(rows) != len(ids):
            raise EngineFailed(f"TensorRT-LLM gave log-probabilities of {len(rows)} tokens out of {len(ids)}")
        return [self._row(token, row) for token, row in zip(ids, rows)]  # noqa: B905 (checked above)

    def _row(self, token: int, row: Any) -> TokenLogprob:
        if not isinstance(row, dict):
            return TokenLogprob(token, float(row), [(token, float(row))])
        values = {int(key): _number(value) for key, value in row.items()}
        best = sorted(values.items(), key=lambda pair: -pair[1])[: self._num_logprobs]
        return TokenLogprob(token, values[token], best)


def _number(value: Any) -> float:
    """Of a Logprob, or of a number (0.x)."""
    return float(value.logprob if hasattr(value, "logprob") else value)
