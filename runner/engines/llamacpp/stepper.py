"""Stepper: one step, from the scheduler's work to what each request hears.

Owns the batch's way through llama.cpp: fill, decode, take stock (also after an abort in the middle), sample. Does not
know how requests come or where deltas go.
"""

from __future__ import annotations

import time

from runner.engines.base import StepOutput
from runner.engines.llamacpp.context import Context, DecodeResult, Floats
from runner.engines.llamacpp.lora import Adapters
from runner.engines.llamacpp.sampler import check_finite, token_logprob
from runner.engines.llamacpp.scheduler import Scheduler, Work
from runner.engines.llamacpp.sequence import Sequence
from runner.engines.llamacpp.slots import Slots
from runner.errors import EngineFailed, RequestError
from runner.types import TokenDelta

_LONG_BATCH = 64
"""Tokens. A shorter step is over before aborting it would help anybody."""
_SLOW_STEP_S = 2.0
_SMALLEST_BUDGET = 32


def _slot_index(work: Work) -> int:
    assert work.sequence.slot is not None
    return work.sequence.slot.index


class Stepper:
    """Runs steps on one context. All but `interrupt` in the engine thread."""

    def __init__(self, context: Context, slots: Slots, scheduler: Scheduler, adapters: Adapters) -> None:
        self._context = context
        self._slots = slots
        self._scheduler = scheduler
        self._adapters = adapters
        self._budget: int | None = None
        self._is_long = False
        self._interrupted = False

    def interrupt(self) -> None:
        """From any thread: something was cancelled; a long step should end."""
        self._interrupted = True
        if self._is_long:
            self._context.request_abort()

    def step(self) -> list[StepOutput]:
        """Compute and sample once. Raises EngineFailed when llama.cpp does, which ends the process."""
        work = self._scheduler.schedule(self._budget)
        if not work:
            return []
        self._adapters.use(self._context, work[0].sequence.adapter)
        outputs = self._fill(work)
        result = self._decode()
        if result is DecodeResult.DONE:
            self._commit(work)
            return self._sample(outputs)
        if result is DecodeResult.ABORTED:
            self._take_stock(work)
        elif not self._scheduler.make_room_anyhow():
            raise EngineFailed("llama.cpp finds no room in its KV cache for a single request")
        return []

    def _fill(self, work: list[Work]) -> list[Sequence]:
        """Put the work into the batch; returns the sequences that get a row of logits, in row order.

        In the order of slots: where each has cells of its own, llama.cpp computes only neighbours together.
        """
        batch = self._context.batch
        batch.clear()
        outputs = []
        for sequence, num_tokens in sorted(work, key=_slot_index):
            start = sequence.num_computed
            assert sequence.slot is not None
            is_last = start + num_tokens == len(sequence.tokens)
            if num_tokens == 1 and is_last:
                batch.add_token(sequence.tokens[start], start, sequence.slot.index)
            else:
                chunk = sequence.tokens[start : start + num_tokens]
                batch.add_chunk(chunk, start, sequence.slot.index, outputs="last" if is_last else "none")
            if is_last:
                outputs.append(sequence)
        return outputs

    def _decode(self) -> DecodeResult:
        num_tokens = self._context.batch.num_tokens
        self._is_long = num_tokens > _LONG_BATCH  # before looking at _interrupted: no interrupt may fall between
        try:
            if self._is_long and self._interrupted:
                return DecodeResult.ABORTED
            began = time.monotonic()
            result = self._context.decode()
            self._adapt_budget(num_tokens, time.monotonic() - began)
            return result
        finally:
            self._is_long = self._interrupted = False
            self._context.clear_abort()

    def _adapt_budget(self, num_tokens: int, seconds: float) -> None:
        """Smaller prompt chunks on a slow machine, as requests are looked at between steps; larger when it is quick."""
        if seconds > _SLOW_STEP_S and num_tokens > _SMALLEST_BUDGET:
            self._budget = max(_SMALLEST_BUDGET, num_tokens // 2)
        elif self._budget is not None and num_tokens >= self._budget and seconds < _SLOW_STEP_S / 4:
            self._budget = 2 * self._budget if self._budget < self._context.batch.capacity else None

    def _commit(self, work: list[Work]) -> None:
        for sequence, num_tokens in work:
            slot = sequence.slot
            assert slot is not None
            start = len(slot.tokens)
            self._slots.extend(slot, sequence.tokens[start : start + num_tokens])

    def _take_stock(self, work: list[Work]) -> None:
        """After an abort: what llama.cpp kept of each sequence counts, save a last token whose logits were lost."""
        for sequence, num_tokens in work:
            slot = sequence.slot
            assert slot is not None
            start = len(slot.tokens)
            kept = min(self._context.length(slot.index) - start, num_tokens)
            if kept > 0:
                self._slots.extend(slot, sequence.tokens[start : start + kept])
            if len(slot.tokens) == len(sequence.tokens):
                self._slots.truncate(slot, len(slot.tokens) - 1)

    def _sample(self, sequences: list[Sequence]) -> list[StepOutput]:
        if not sequences:
            return []
        logits = self._context.logits()
        best = self._batched_argmax(logits, sequences)
        return [self._advance(sequence, logits[row], best, row) for row, sequence in enumerate(sequences)]

    def _batched_argmax(self, logits: Floats, sequences: list[Sequence]) -> list[int] | None:
        """All rows at once where every request is plainly greedy."""
        if any(not sequence.sampler.is_plain(sequence.num_output) for sequence in sequences):
            return None
        best: list[int] = logits.argmax(axis=1).tolist()
        return best

    def _advance(self, sequence: Sequence, row: Floats, best: list[int] | None, index: int) -> StepOutput:
        try:
            if best is None:
                token = sequence.sampler.choose(row, sequence.tokens, sequence.num_output)
            else:
                token = best[index]
                check_finite(float(row[token]))
            delta = self._delta(sequence, token, row)
        except (EngineFailed, RequestError) as problem:
            self._scheduler.finish(sequence)
            return StepOutput(
                sequence.id, None, str(problem), "request" if isinstance(problem, RequestError) else "engine"
            )
        if delta.finish is not None:
            self._scheduler.finish(sequence)
        return StepOutput(sequence.id, delta)

    def _delta(self, sequence: Sequence, token: int, row: Floats) -> TokenDelta:
        cached = sequence.cached_tokens if sequence.num_output == 0 else None
        if sequence.is_stop(token):
            return TokenDelta([], "stop", stop_token_id=token, cached_tokens=cached)
        logprobs = None
        if sequence.logprobs is not None:
            logprobs = [token_logprob(row, token, sequence.logprobs)]
        return TokenDelta([token], sequence.append(token), logprobs, cached_tokens=cached)
