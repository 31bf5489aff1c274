"""One choice (answer) of one request: token ids of the engine -> text, stops, log-probabilities.

Owns detokenization, stop strings and what is held back. Knows no engine and no other choice. Without stop strings a
delta is decoded in one go; with them, token by token, so that the answer is the same however the engine cut its deltas:

    tokens   | shown | held (their text may become a stop string, or is half a character) | to come
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_cards.detokenizer import Detokenizer
from runner.errors import EngineFailed
from runner.stops import StopMatcher, StopStrings
from runner.types import ChatRequest, TextDelta, TextLogprob, TokenDelta, TokenLogprob

if TYPE_CHECKING:
    from model_cards.tokenizer import Tokenizer


class _Held(NamedTuple):
    """A token that is not shown yet; its text is characters [start, end) of the choice's text."""

    token_id: int
    logprob: TokenLogprob | None
    start: int
    end: int


class Choice:
    """Follows one stream. Feed `push` each delta; it returns what can be shown, or None. Done when `is_finished`."""

    __slots__ = (
        "_detokenizer",
        "_held",
        "_ids",
        "_logprobs",
        "_matcher",
        "_min_tokens",
        "_produced",
        "_request",
        "_shown",
        "_tokenizer",
        "cached_tokens",
        "index",
        "is_finished",
        "num_tokens",
    )

    def __init__(
        self, index: int, request: ChatRequest, prompt_ids: list[int], tokenizer: Tokenizer, stops: StopStrings | None
    ) -> None:
        self.index = index
        self.num_tokens = 0
        """Tokens that the engine made for the answer, a stop token included."""
        self.cached_tokens = 0
        self.is_finished = False
        self._request = request
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt_ids=prompt_ids, skip_special=request.skip_special_tokens)
        self._matcher = StopMatcher(stops, include=request.include_stop_str_in_output) if stops is not None else None
        self._min_tokens = request.min_tokens
        self._ids: list[int] = []
        self._logprobs: list[TextLogprob] | None = None
        self._held: list[_Held] = []
        self._produced = 0
        self._shown = 0

    def push(self, delta: TokenDelta) -> TextDelta | None:
        """The new text of this choice. A delta without text is kept for the next one, unless it is the last."""
        if delta.cached_tokens is not None:
            self.cached_tokens = delta.cached_tokens
        if self._matcher is not None:
            return self._push_carefully(delta, self._matcher)
        ids = delta.token_ids
        self.num_tokens += len(ids)
        text = self._detokenizer.push_one(ids[0]) if len(ids) == 1 else self._detokenizer.push(ids)
        if delta.logprobs is not None:
            self._add_logprobs(_aligned(delta))
        if delta.finish is not None:
            self._ids += ids
            return self._finish(delta, text + self._detokenizer.flush())
        if not text:
            self._ids += ids
            return None
        if self._ids:
            ids, self._ids = self._ids + ids, []
        if self._logprobs is None:
            return TextDelta(index=self.index, text=text, token_ids=ids)
        logprobs, self._logprobs = self._logprobs, None
        return TextDelta(index=self.index, text=text, token_ids=ids, logprobs=logprobs)

    def _push_carefully(self, delta: TokenDelta, matcher: StopMatcher) -> TextDelta | None:
        logprobs = _aligned(delta) if delta.logprobs is not None else None
        pieces: list[str] = []
        for place, token_id in enumerate(delta.token_ids):
            piece = self._detokenizer.push_one(token_id)
            self.num_tokens += 1
            start, self._produced = self._produced, self._produced + len(piece)
            self._held.append(_Held(token_id, logprobs[place] if logprobs else None, start, self._produced))
            shown = self._guard(matcher, piece)
            self._shown += len(shown)
            pieces.append(shown)
            if matcher.found is not None:
                return self._stop(matcher.found, "".join(pieces))
        if delta.finish is not None:
            return self._finish_carefully(delta, matcher, "".join(pieces))
        text = "".join(pieces)
        if not text:
            return None
        self._release(self._shown)
        ids, self._ids = self._ids, []
        text_logprobs, self._logprobs = self._logprobs, None
        return TextDelta(index=self.index, text=text, token_ids=ids, logprobs=text_logprobs)

    def _finish_carefully(self, delta: TokenDelta, matcher: StopMatcher, text: str) -> TextDelta:
        """The engine ends the stream: half a character left over may still complete a stop string."""
        tail = self._detokenizer.flush()
        self._produced += len(tail)
        shown = self._guard(matcher, tail)
        self._shown += len(shown)
        if matcher.found is not None:
            return self._stop(matcher.found, text + shown)
        self._release(self._produced)
        return self._finish(delta, text + shown + matcher.flush())

    def _guard(self, matcher: StopMatcher, piece: str) -> str:
        """Text through the matcher; no stop string may begin in the first min_tokens tokens."""
        return piece if self.num_tokens <= self._min_tokens else matcher.push(piece)

    def _release(self, until: int) -> None:
        """Show the tokens whose text ends at or before a character."""
        num_free = 0
        while num_free < len(self._held) and self._held[num_free].end <= until:
            num_free += 1
        self._show(self._held[:num_free])
        del self._held[:num_free]

    def _show(self, tokens: list[_Held]) -> None:
        self._ids += [token.token_id for token in tokens]
        self._add_logprobs([token.logprob for token in tokens if token.logprob is not None])

    def _stop(self, found: str, text: str) -> TextDelta:
        """A stop string: tokens of which no character is shown are not shown either."""
        self._show([token for token in self._held if token.start < self._shown])
        self._held.clear()
        self.is_finished = True
        return TextDelta(
            index=self.index,
            text=text,
            token_ids=self._ids,
            logprobs=self._logprobs,
            finish="stop",
            stop_reason=found,
        )

    def _finish(self, delta: TokenDelta, text: str) -> TextDelta:
        self.is_finished = True
        stop_id = delta.stop_token_id
        if stop_id is not None:
            self.num_tokens += 1
        asked = stop_id is not None and stop_id in self._request.stop_token_ids
        return TextDelta(
            index=self.index,
            text=text,
            token_ids=self._ids,
            logprobs=self._logprobs,
            finish=delta.finish,
            stop_reason=stop_id if asked else None,
        )

    def _add_logprobs(self, logprobs: list[TokenLogprob]) -> None:
        if not logprobs:
            return
        if self._logprobs is None:
            self._logprobs = []
        for entry in logprobs:
            top = [self._text_logprob(token_id, logprob, []) for token_id, logprob in entry.top]
            self._logprobs.append(self._text_logprob(entry.token_id, entry.logprob, top))

    def _text_logprob(self, token_id: int, logprob: float, top: list[TextLogprob]) -> TextLogprob:
        raw = self._tokenizer.token_bytes(token_id)
        return TextLogprob(
            token_id=token_id, token=raw.decode("utf-8", "replace"), bytes=list(raw), logprob=logprob, top=top
        )


def _aligned(delta: TokenDelta) -> list[TokenLogprob]:
    """The delta's log-probabilities, one for each id."""
    logprobs = delta.logprobs or []
    if len(logprobs) != len(delta.token_ids):
        raise EngineFailed(f"the engine sent {len(logprobs)} log-probabilities for {len(delta.token_ids)} tokens")
    return logprobs
