"""Answer: mistral.rs' chunks of one request as deltas of ours. Pure bookkeeping; knows no Engine.

One chunk is one token. The token that ends an answer comes without text, and special tokens do not come at all.
"""

from __future__ import annotations

from typing import Any

from runner.engines.mistralrs.vocabulary import Vocabulary
from runner.errors import EngineFailed
from runner.types import TokenDelta, TokenLogprob, TokenRequest


class Answer:
    """What was seen of one answer. `special_stops`: the special tokens that end it."""

    def __init__(self, request: TokenRequest, vocabulary: Vocabulary, special_stops: list[int]) -> None:
        self._stops = frozenset(request.stop_token_ids)
        self._num_logprobs = request.sampling.logprobs
        self._vocabulary = vocabulary
        self._special_stops = special_stops
        self._num_seen = 0

    def push(self, chunk: Any) -> TokenDelta | None:
        """The delta of a chunk; None where it brings nothing. Raises EngineFailed."""
        choice = chunk.choices[0]
        row = choice.logprobs
        ids: list[int] = []
        if row is not None and choice.finish_reason != "stop":
            token = self._vocabulary.id_of(row)
            if token in self._stops:
                return TokenDelta([], "stop", None, token)
            ids.append(token)
            self._num_seen += 1
        if choice.finish_reason is None:
            return TokenDelta(ids, None, self._rows(ids, row)) if ids else None
        return self._end(choice.finish_reason, ids, row, chunk.usage)

    def _end(self, reason: str, ids: list[int], row: Any, usage: Any) -> TokenDelta:
        if reason not in ("stop", "length"):
            raise EngineFailed(f"mistral.rs ended the answer with {reason!r}")
        num_made = usage.completion_tokens - (reason == "stop") if usage is not None else self._num_seen
        if num_made > self._num_seen:
            raise EngineFailed(
                f"mistral.rs made {num_made} tokens and told {self._num_seen}: it hides special tokens of this model"
            )
        stop = self._special_stops[0] if reason == "stop" and len(self._special_stops) == 1 else None
        return TokenDelta(ids, "stop" if reason == "stop" else "length", self._rows(ids, row), stop)

    def _rows(self, ids: list[int], row: Any) -> list[TokenLogprob] | None:
        if self._num_logprobs is None:
            return None
        top = [(int(one.token), float(one.logprob)) for one in row.top_logprobs[: self._num_logprobs]] if ids else []
        return [TokenLogprob(token, float(row.logprob), top) for token in ids]
