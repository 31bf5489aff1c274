"""mocker: the timing of a GPU engine without a GPU, for load tests of everything above engines.

A step-wise scheduler with paged blocks, prefix cache, chunked prefill, queueing and preemption; a step "takes" as long
as a linear model says. Answers are plain-text token ids made from a hash of prompt and seed. Runs in a child process,
so that the launcher's own CPU can be measured alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import msgspec

from model_cards.card import ModelCard
from runner import __version__
from runner.engines.base import EngineSpec, StepOutput
from runner.engines.block_log import BlockLog
from runner.engines.mock_blocks import BlockPool, BlockTable, block_hashes, key_bytes
from runner.engines.process import ProcessEngine
from runner.errors import ContextOverflow, EngineStartFailed, UnsupportedField
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest

_MAX_PLAIN_IDS = 4096
_UNINTERRUPTED_S = 0.05
"""Only longer steps end early when something is cancelled."""
_STRIDE = 2654435761
_DEFAULT_CONTEXT = 131072
_CAPABILITIES = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "length_penalty", "min_tokens",
)  # fmt: skip


class MockOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """--extra-engine-args of the mocker; the first eight are dynamo-run's."""

    num_gpu_blocks: int = 16384
    block_size: int = 64
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    watermark: float = 0.01
    """Share of blocks that a new request must leave free."""
    speedup_ratio: float = 1.0
    """0: as fast as possible."""
    dp_size: int = 1
    """Replicas; they share one queue here: blocks, requests and tokens a step are multiplied."""
    prefill_us_per_token: float = 25.0
    decode_base_us: float = 6000.0
    decode_us_per_seq: float = 20.0
    mean_output_tokens: int = 0
    """0: answers end by max_tokens only; else a request ends by itself after 1 to 2 * mean tokens."""


def make_engine(spec: EngineSpec) -> ProcessEngine:
    """out=mocker."""
    return ProcessEngine(spec, "runner.engines.mocker:MockEngine", shape="step")


def read_options(spec: EngineSpec) -> MockOptions:
    """The options; those of the command line count where extra says nothing. Raises EngineStartFailed."""
    chosen: dict[str, Any] = {}
    if spec.options.max_running is not None:
        chosen["max_num_seqs"] = spec.options.max_running
    if spec.options.kv_cache_block_size is not None:
        chosen["block_size"] = spec.options.kv_cache_block_size
    try:
        options = msgspec.convert({**chosen, **spec.options.extra}, MockOptions)
    except msgspec.ValidationError as error:
        allowed = ", ".join(MockOptions.__struct_fields__)
        raise EngineStartFailed(f"--extra-engine-args of mocker: {error}; known are {allowed}") from error
    for name in ("num_gpu_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "dp_size"):
        if getattr(options, name) < 1:
            raise EngineStartFailed(f"--extra-engine-args of mocker: {name} is {getattr(options, name)}; at least 1")
    return options


def plain_token_ids(card: ModelCard) -> list[int]:
    """Ids that decode to plain ASCII words; without a tokenizer, all ids but those that end a turn."""
    if card.tokenizer is None:
        ids = [token_id for token_id in range(card.vocab_size or 256) if token_id not in card.eos_token_ids]
        return ids[:_MAX_PLAIN_IDS]
    from model_cards.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(card)
    ids = []
    for token_id, piece in enumerate(tokenizer.all_token_bytes()):
        if piece.strip().isalpha() and piece.isascii() and token_id not in card.eos_token_ids:
            if not tokenizer.is_special(token_id):
                ids.append(token_id)
            if len(ids) >= _MAX_PLAIN_IDS:
                break
    if not ids:
        raise EngineStartFailed(f"the vocabulary of {card.name} has no plain-text tokens to answer with")
    return ids


class _Sequence:
    """One request. 0 <= num_computed <= num_tokens; it decodes when all but the newest token are computed."""

    def __init__(self, request: TokenRequest, block_size: int, start: int, own_end: int | None) -> None:
        self.request = request
        self.hashes = block_hashes(request.token_ids, block_size)
        self.stops = frozenset(request.stop_token_ids)
        self.start = start
        self.own_end = own_end
        self.num_made = 0
        self.num_computed = 0
        self.num_cached = 0
        self.is_cached_told = False
        self.table: BlockTable | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.request.token_ids) + self.num_made


class MockEngine:
    """A StepEngine (runs in the child)."""

    def __init__(self) -> None:
        self._options = MockOptions()
        self._ids: list[int] = []
        self._context_length = 0
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._pool = BlockPool(1, enable_prefix_caching=False)
        self._interrupted = threading.Event()
        self._num_preemptions = 0

    def start(self, spec: EngineSpec) -> EngineInfo:
        """See StepEngine."""
        options = self._options = read_options(spec)
        self._ids = plain_token_ids(spec.card)
        num_blocks = options.num_gpu_blocks * options.dp_size
        self._pool = BlockPool(num_blocks, enable_prefix_caching=options.enable_prefix_caching)
        wanted = spec.options.context_length or spec.card.context_length or _DEFAULT_CONTEXT
        self._context_length = min(wanted, (num_blocks - self._watermark_blocks) * options.block_size)
        return EngineInfo(
            name=spec.name,
            version=__version__,
            context_length=self._context_length,
            max_running=options.max_num_seqs * options.dp_size,
            capabilities=_CAPABILITIES,
            details=msgspec.structs.asdict(options),
        )

    @property
    def block_log(self) -> BlockLog:
        """See StepHost."""
        return self._pool.log

    @property
    def _watermark_blocks(self) -> int:
        return int(self._options.watermark * self._pool.num_blocks)

    def add(self, request: TokenRequest) -> None:
        """See StepEngine."""
        prompt_len = len(request.token_ids)
        if prompt_len + request.max_tokens > self._context_length:
            raise ContextOverflow(
                f"prompt ({prompt_len:,} tokens) and max_tokens ({request.max_tokens:,}) exceed the context of "
                f"{self._context_length:,}; shorten one of them",
                prompt_tokens=prompt_len,
                context_length=self._context_length,
                max_tokens=request.max_tokens,
            )
        seed = request.sampling.seed
        start = hash((tuple(request.token_ids), -1 if seed is None else seed))  # hash(None) differs by process
        mean = self._options.mean_output_tokens
        own_end = 1 + start % (2 * mean) if mean else None
        self._waiting.append(_Sequence(request, self._options.block_size, start, own_end))

    def cancel(self, request_id: str) -> None:
        """See StepEngine."""
        for sequence in [*self._running, *self._waiting]:
            if sequence.request.id == request_id:
                self._release(sequence)

    def _release(self, sequence: _Sequence) -> None:
        if sequence.table is not None:
            self._pool.give_back(sequence.table)
            sequence.table = None
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)

    def has_work(self) -> bool:
        """See StepEngine."""
        return bool(self._running or self._waiting)

    def step(self) -> list[StepOutput]:
        """See StepEngine: admit, compute within the token budget, take the time that it would take."""
        budget = self._options.max_num_batched_tokens * self._options.dp_size
        num_decode, num_prefill = 0, 0
        made: list[_Sequence] = []
        num_preemptions = self._num_preemptions
        for sequence in list(self._running):
            if sequence.table is None:
                continue  # preempted meanwhile
            missing = sequence.num_tokens - sequence.num_computed
            part = min(missing, budget)
            if part <= 0 or not self._make_room(sequence):
                continue
            budget -= part
            if missing == 1 and sequence.num_made:
                num_decode += 1
            else:
                num_prefill += part
            sequence.num_computed += part
            if part == missing:
                made.append(sequence)
        if num_preemptions == self._num_preemptions:
            num_prefill += self._admit(budget, made)
        self._take_time(num_decode, num_prefill)
        return [self._emit(sequence) for sequence in made if sequence.table is not None]

    def _make_room(self, sequence: _Sequence) -> bool:
        """A block for the next token, preempting the newest request if need be. False: this one was preempted."""
        assert sequence.table is not None
        while len(sequence.table) * self._options.block_size < sequence.num_tokens + 1:
            if self._pool.grow(sequence.table):
                continue
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: _Sequence) -> None:
        """Its blocks are lost; it is computed again, from its prompt to its newest token."""
        self._num_preemptions += 1
        assert victim.table is not None
        self._pool.give_back(victim.table)
        victim.table, victim.num_computed = None, 0
        self._running.remove(victim)
        self._waiting.appendleft(victim)

    def _admit(self, budget: int, made: list[_Sequence]) -> int:
        """Start waiting requests while blocks and budget allow; returns the number of tokens computed for them."""
        num_prefill = 0
        while self._waiting and len(self._running) < self._options.max_num_seqs * self._options.dp_size:
            sequence = self._waiting[0]
            num_blocks = -(-(sequence.num_tokens + 1) // self._options.block_size)
            needed = self._pool.num_needed(sequence.hashes, num_blocks)
            if self._pool.num_free - needed < (self._watermark_blocks if self._running else 0):
                break
            cached = min(self._pool.num_cached(sequence.hashes) * self._options.block_size, sequence.num_tokens - 1)
            missing = sequence.num_tokens - cached
            is_alone = not self._running and not num_prefill
            part = min(missing, budget) if self._options.enable_chunked_prefill else missing
            if part <= 0 or (part > budget and not is_alone):
                break
            self._waiting.popleft()
            self._running.append(sequence)
            num_known = self._pool.num_cached(sequence.hashes)
            sequence.table = self._pool.take(sequence.hashes, num_blocks)
            self._log_stored(sequence, num_known)
            sequence.num_cached, sequence.num_computed = cached, cached + part
            budget -= part
            num_prefill += part
            if part == missing:
                made.append(sequence)
        return num_prefill

    def _log_stored(self, sequence: _Sequence, num_known: int) -> None:
        """The full blocks of its prompt, but those that were there."""
        if self.block_log.is_on and self._options.enable_prefix_caching:
            size, hashes = self._options.block_size, sequence.hashes
            parent = key_bytes(hashes[num_known - 1]) if num_known else b""
            token_ids = sequence.request.token_ids[num_known * size : len(hashes) * size]
            self.block_log.stored([key_bytes(one) for one in hashes[num_known:]], parent, token_ids)

    def _take_time(self, num_decode: int, num_prefill: int) -> None:
        options = self._options
        if not options.speedup_ratio:
            return
        step_us = options.decode_base_us + options.decode_us_per_seq * num_decode
        step_us += options.prefill_us_per_token * num_prefill
        step_s = step_us / 1e6 / options.speedup_ratio
        self._interrupted.clear()
        time.sleep(min(step_s, _UNINTERRUPTED_S))
        if step_s > _UNINTERRUPTED_S:
            self._interrupted.wait(step_s - _UNINTERRUPTED_S)

    def _emit(self, sequence: _Sequence) -> StepOutput:
        """The next token of a request whose tokens are all computed, or its end."""
        request = sequence.request
        token_id = self._next_id(sequence)
        may_stop = sequence.num_made >= request.min_tokens
        cached = None if sequence.is_cached_told else sequence.num_cached
        sequence.is_cached_told = True
        ends_itself = sequence.own_end is not None and sequence.num_made >= sequence.own_end
        if may_stop and (token_id in sequence.stops or ends_itself):
            self._release(sequence)
            stop_id = token_id if token_id in sequence.stops else next(iter(request.stop_token_ids), None)
            return StepOutput(request.id, TokenDelta([], "stop", stop_token_id=stop_id, cached_tokens=cached))
        sequence.num_made += 1
        finish = "length" if sequence.num_made >= request.max_tokens else None
        if finish:
            self._release(sequence)
        return StepOutput(request.id, TokenDelta([token_id], finish, cached_tokens=cached))  # type: ignore[arg-type]

    def _next_id(self, sequence: _Sequence) -> int:
        """Cycles through the plain ids from a start that prompt and seed choose; skips masked stop ids."""
        at = sequence.start + sequence.num_made * _STRIDE
        token_id = self._ids[at % len(self._ids)]
        if token_id in sequence.stops and sequence.num_made < sequence.request.min_tokens:
            return next((other for other in self._ids if other not in sequence.stops), token_id)
        return token_id

    def embed(self, request: EmbedRequest) -> EmbedResult:
        """Refused."""
        raise UnsupportedField("the engine mocker makes no embeddings", field="model")

    def interrupt(self) -> None:
        """See StepEngine."""
        self._interrupted.set()

    def stats(self) -> dict[str, float]:
        """See StepEngine."""
        block_size = self._options.block_size
        return {
            "num_running": float(len(self._running)),
            "num_waiting": float(len(self._waiting)),
            "kv_used_tokens": float(self._pool.num_used * block_size),
            "kv_total_tokens": float(self._pool.num_blocks * block_size),
            "num_preemptions": float(self._num_preemptions),
        }

    def close(self) -> None:
        """Nothing to free."""
