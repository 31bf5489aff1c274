"""Sequence, Group, Sample: a token stream on its way, the request it belongs to, and what the sampler says of one row.

Owns the state of each, not what happens to it: scheduler.py gives blocks and takes them, core.py appends tokens.

    token_ids   | prompt ........ | output ... |      0 <= num_computed <= len(token_ids)
                | computed .............. | remaining |      K and V of what is computed are in block_ids
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runner.engines.native.beams import BeamSearch
from runner.types import TokenLogprob, TokenRequest


@dataclass
class Sample:
    """What the sampler chose for one row of logits; an error ends that request alone."""

    token_id: int
    logprob: TokenLogprob | None = None
    candidates: list[tuple[int, float]] = field(default_factory=list)
    """Beam search only: the `num_candidates(request)` best (token, its log-probability), best first; no -inf."""
    error: str | None = None
    is_clients_fault: bool = False
    """Of an error: the request itself can never be answered (a grammar that is too complex)."""
    is_end: bool = False
    """Nothing can follow this token (the grammar is complete): the answer ends with it, reason `stop`."""


class Sequence:
    """One token stream. A request has one, a beam search up to `beam_width`."""

    __slots__ = (
        "block_ids", "group", "hashes", "num_computed", "num_registered", "pending", "prompt_len", "request", "row",
        "sampling", "token_ids",
    )  # fmt: skip

    def __init__(self, group: Group, token_ids: list[int], sampling: Any = None) -> None:
        self.group = group
        self.request = group.request
        self.token_ids = token_ids
        """Prompt and output."""
        self.prompt_len = len(group.request.token_ids)
        self.sampling = sampling
        """The sampler's, opaque here; `fork()` of it is called where beams part."""
        self.num_computed = 0
        """Tokens whose K and V are in the cache."""
        self.block_ids: list[int] = []
        self.row = -1
        """Of the block table; -1 while it has no blocks."""
        self.hashes: list[bytes] = []
        """Prefix hashes of the leading full blocks of token_ids, as far as anybody asked."""
        self.num_registered = 0
        """Leading blocks that are in the prefix cache, so that others may share them."""
        self.pending: Sample | None = None
        """Beam search: this beam's candidates, until those of all beams are there."""

    @property
    def num_output(self) -> int:
        """Tokens made so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def num_cached(self) -> int:
        """Prompt tokens that the first admission took from the prefix cache."""
        return self.group.num_cached or 0

    @property
    def is_waiting(self) -> bool:
        """Whether it has no place in the KV cache (new, or preempted)."""
        return self.row < 0


class Group:
    """One request: admitted, preempted and finished as one. All but beam searches have a single sequence."""

    __slots__ = (
        "arrival", "is_open", "max_tokens", "num_cached", "request", "salt", "search", "sequences", "stop_ids",
    )  # fmt: skip

    def __init__(self, request: TokenRequest, arrival: int, salt: bytes, sampling: Any = None) -> None:
        self.request = request
        self.arrival = arrival
        """Counts up; who came first goes first."""
        self.salt = salt
        """Root of its prefix hashes: only requests with the same one share blocks."""
        self.stop_ids = frozenset(request.stop_token_ids)
        self.max_tokens = request.max_tokens
        self.num_cached: int | None = None
        self.search = BeamSearch(request) if request.sampling.beam_width > 1 else None
        self.is_open = True
        self.sequences = [Sequence(self, list(request.token_ids), sampling)]
        """Beams best first."""

    @property
    def width(self) -> int:
        """Sequences that it may come to."""
        return self.request.sampling.beam_width

    def max_blocks(self, block_size: int) -> int:
        """The most blocks it can ever hold: full blocks of the prompt once, all else for each beam."""
        prompt_len = len(self.request.token_ids)
        shared = prompt_len // block_size
        return shared + self.width * (-(-(prompt_len + self.max_tokens) // block_size) - shared)
