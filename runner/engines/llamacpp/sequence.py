"""Sequence: one request on its way. Its tokens, its slot, its sampler; scheduling is scheduler.py's."""

from __future__ import annotations

from runner.engines.llamacpp.sampler import Sampler
from runner.engines.llamacpp.slots import Slot
from runner.types import FinishReason, TokenRequest


class Sequence:
    """`0 <= num_computed < len(tokens)`: what is computed chases what is known; the last one gives logits."""

    def __init__(self, request: TokenRequest, sampler: Sampler) -> None:
        self.id = request.id
        self.adapter = request.adapter
        self.sampler = sampler
        self.tokens = list(request.token_ids)
        """Prompt and output."""
        self.prompt_len = len(request.token_ids)
        self.slot: Slot | None = None
        self.cached_tokens: int | None = None
        """Prompt tokens that the first admission took from the cache."""
        self.logprobs = request.sampling.logprobs
        self._max_tokens = request.max_tokens
        self._stop_ids = frozenset(request.stop_token_ids)

    @property
    def num_output(self) -> int:
        """Tokens made so far."""
        return len(self.tokens) - self.prompt_len

    @property
    def num_computed(self) -> int:
        """Tokens whose keys and values are in the cache."""
        return len(self.slot.tokens) if self.slot is not None else 0

    @property
    def num_remaining(self) -> int:
        """Tokens to compute before the next one can be chosen; 1 is a decode step."""
        return len(self.tokens) - self.num_computed

    def is_stop(self, token: int) -> bool:
        """Whether `token` ends the answer."""
        return token in self._stop_ids

    def append(self, token: int) -> FinishReason | None:
        """Add a token of the answer; says whether and why that was the last one."""
        self.tokens.append(token)
        self.sampler.accept(token)
        matcher = self.sampler.matcher
        if matcher is not None:
            matcher.accept(token)
            if matcher.is_complete:
                return "stop"
        return "length" if self.num_output >= self._max_tokens else None
