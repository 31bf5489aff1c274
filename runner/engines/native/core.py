"""Core: requests in, steps out, samples in, deltas out. Torch-free; runs in the one engine thread.

Owns the open requests and what each hears: the only place where results are committed. Blocks and the order of work are
the scheduler's, logits and their choice the sampler's.

    add -> waiting -> schedule() -> [plan is executed, rows are sampled] -> commit() -> StepOutput      again and again
                                                                        \\-> fail()   -> StepOutput
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runner.engines.base import StepOutput
from runner.engines.block_log import BlockLog
from runner.engines.native.blocks import root_hash
from runner.engines.native.burst import Burst, make_burst
from runner.engines.native.scheduler import CoreConfig, Scheduled, Scheduler
from runner.engines.native.sequence import Group, Sample, Sequence
from runner.engines.native.tables import Chunk
from runner.errors import ContextOverflow, EngineBusy, RequestError
from runner.types import FinishReason, TokenDelta, TokenRequest

__all__ = ["Core", "CoreConfig", "Sample", "Scheduled", "Sequence"]


class Core:
    """schedule() and commit() or fail() take turns; add() and cancel() may come at any time between calls."""

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._scheduler = Scheduler(config)
        self._open: dict[str, list[Group]] = {}
        """By request id: nobody forbids two of the same."""
        self._num_arrived = 0

    def add(self, request: TokenRequest, sampling: Any = None) -> None:
        """Queue a request of at least one prompt token and `max_tokens` of at least 1 (see runner.engines.admission).

        `sampling` comes back as Sequence.sampling; beams call its `fork()`. Raises ContextOverflow or RequestError for
        one that can never fit, EngineBusy where the queue is full.
        """
        assert request.token_ids and request.max_tokens >= 1
        group = Group(request, self._num_arrived, self._salt(request), sampling)
        self._check_fit(group)
        self._check_queue()
        self._num_arrived += 1
        self._open.setdefault(request.id, []).append(group)
        self._scheduler.add(group)

    def _salt(self, request: TokenRequest) -> bytes:
        """Requests share prefixes under the same adapter; without a prefix cache, only a request with itself."""
        adapter = b"" if request.adapter is None else b"adapter:" + request.adapter.encode()
        return root_hash(adapter if self._config.prefix_cache else b"request:%d:" % self._num_arrived + adapter)

    def _check_fit(self, group: Group) -> None:
        config, request = self._config, group.request
        prompt_len = len(request.token_ids)
        num_blocks = group.max_blocks(config.block_size)
        capacity = config.num_blocks * config.block_size
        if prompt_len + request.max_tokens > config.context_length or num_blocks > config.num_blocks:
            beams = f" with {group.width} beams" if group.width > 1 else ""
            raise ContextOverflow(
                f"prompt has {prompt_len:,} tokens and max_tokens is {request.max_tokens:,}{beams}: the context is "
                f"{config.context_length:,} tokens, and the KV cache has room for {capacity:,} where up to "
                f"{num_blocks * config.block_size:,} are needed; shorten it, lower max_tokens or give the KV cache "
                "more memory",
                prompt_tokens=prompt_len,
                context_length=min(config.context_length, capacity),
                max_tokens=request.max_tokens,
            )
        most = min(config.max_running, config.vocab_size - len(group.stop_ids))
        if not 1 <= group.width <= most:
            raise RequestError(
                f"beam_width must be from 1 to {most}, got {group.width}; {config.max_running} sequences run at once: "
                "take fewer beams or start with a larger --max-running",
                field="beam_width",
            )

    def _check_queue(self) -> None:
        limit, running = self._config.max_queue, self._config.max_running
        if limit is not None and len(self._scheduler.running) + len(self._scheduler.waiting) >= running + limit:
            raise EngineBusy(
                f"{running} requests run and {limit} wait, which is all that --max-queue allows; try again"
            )

    def cancel(self, request_id: str) -> None:
        """Forget a request and free its blocks at once; unknown ids are fine."""
        for group in list(self._open.get(request_id, ())):
            self._close(group)

    @property
    def block_log(self) -> BlockLog:
        """What happens to the prefix cache."""
        return self._scheduler.pool.log

    def has_work(self) -> bool:
        """Whether `schedule` would return a step."""
        return bool(self._scheduler.running or self._scheduler.waiting)

    def schedule(self) -> Scheduled | None:
        """The next step to compute; None only without work. Nothing of it counts before commit()."""
        return self._scheduler.schedule()

    def burst(self, scheduled: Scheduled) -> Burst | None:
        """How many steps the model may make of this one; None where anybody waits for the next."""
        scheduler = self._scheduler
        if scheduler.waiting or len(scheduler.running) != len(scheduled.chunks):
            return None
        return make_burst(scheduled, self._config.block_size)

    def commit(
        self, scheduled: Scheduled, samples: list[Sample], runs: list[list[int]] | None = None
    ) -> list[StepOutput]:
        """The step was computed; `samples` belong to `scheduled.sampled`. Returns what each request hears.

        `runs`: the tokens that a burst made of each before its sample, computed too.
        """
        self._scheduler.mark_computed(_prolong(scheduled.chunks, runs) if runs else scheduled.chunks)
        outputs = []
        for sequence, sample, run in zip(scheduled.sampled, samples, runs or [[]] * len(samples), strict=True):
            group = sequence.group
            if not group.is_open:
                continue
            if sample.error is not None:
                outputs.append(self._end(group, sample.error, "request" if sample.is_clients_fault else "engine"))
            elif group.search is None:
                outputs.append(self._append(sequence, sample, run))
            else:
                sequence.pending = sample
                if all(one.pending is not None for one in group.sequences):
                    outputs += self._advance_beams(group)
        return outputs

    def _append(self, sequence: Sequence, sample: Sample, run: list[int]) -> StepOutput:
        group, token = sequence.group, sample.token_id
        cached = group.num_cached if len(sequence.token_ids) == sequence.prompt_len else None
        if token in group.stop_ids:
            self._close(group)
            return StepOutput(group.request.id, TokenDelta(run[:], "stop", stop_token_id=token, cached_tokens=cached))
        sequence.token_ids.append(token)
        finish: FinishReason | None = None
        if sample.is_end:
            finish = "stop"
        elif len(sequence.token_ids) - sequence.prompt_len >= group.max_tokens:
            finish = "length"
        if finish is not None:
            self._close(group)
        logprobs = None if sample.logprob is None else [sample.logprob]
        return StepOutput(group.request.id, TokenDelta([*run, token], finish, logprobs, None, cached))

    def _advance_beams(self, group: Group) -> list[StepOutput]:
        """All beams have their candidates: part them, or tell the best one's answer."""
        search = group.search
        assert search is not None
        picks = search.advance([one.pending.candidates for one in group.sequences if one.pending is not None])
        if picks:
            self._scheduler.branch(group, [pick.parent for pick in picks])
            for sequence, pick in zip(group.sequences, picks, strict=True):
                sequence.pending = None
                sequence.token_ids.append(pick.token_id)
            return []
        if not search.has_answer:
            return [self._end(group, "beam search has no token left to choose: all are forbidden")]
        token_ids, finish, stop_id, logprobs = search.best()
        self._close(group)
        return [StepOutput(group.request.id, TokenDelta(token_ids, finish, logprobs, stop_id, group.num_cached))]

    def fail(
        self, scheduled: Scheduled | None, message: str, sequences: Iterable[Sequence] | None = None
    ) -> list[StepOutput]:
        """The step raised instead of being committed. Ends the requests of `sequences`, if it is known whose fault it
        was; else all of the step; with neither, all that are open. The others go on as if the step had not been.
        """
        if sequences is not None:
            guilty = {sequence.group: None for sequence in sequences}
        elif scheduled is not None:
            guilty = {chunk.sequence.group: None for chunk in scheduled.chunks}
        else:
            guilty = {group: None for groups in self._open.values() for group in groups}
        outputs = [self._end(group, message) for group in guilty if group.is_open]
        if scheduled is not None and len(scheduled.plan.copies):
            self._recompute_beams(scheduled)
        return outputs

    def _recompute_beams(self, scheduled: Scheduled) -> None:
        """Blocks that this step should have copied may not have been: the beams that are left start over.

        With all that came after them, so that the order of arrival stays.
        """
        groups = {chunk.sequence.group for chunk in scheduled.chunks if chunk.sequence.group.search is not None}
        running = self._scheduler.running
        while not groups.isdisjoint(running):
            self._scheduler.preempt(running[-1])

    def _end(self, group: Group, error: str, kind: str = "engine") -> StepOutput:
        self._close(group)
        return StepOutput(group.request.id, None, error, kind)

    def _close(self, group: Group) -> None:
        same_id = self._open[group.request.id]
        same_id.remove(group)
        if not same_id:
            del self._open[group.request.id]
        self._scheduler.finish(group)

    def stats(self) -> dict[str, float]:
        """See Engine.stats. Blocks that only the prefix cache holds count as free."""
        scheduler, size = self._scheduler, self._config.block_size
        return {
            "num_running": float(len(scheduler.running)),
            "num_waiting": float(len(scheduler.waiting)),
            "kv_used_tokens": float((self._config.num_blocks - scheduler.pool.num_free) * size),
            "kv_total_tokens": float(self._config.num_blocks * size),
            "prefix_cache_queries": float(scheduler.num_query_tokens),
            "prefix_cache_hits": float(scheduler.num_hit_tokens),
            "num_preemptions": float(scheduler.num_preempted),
        }

    def check(self) -> None:
        """Assert every invariant of requests, sequences, tables and blocks."""
        groups = [group for same_id in self._open.values() for group in same_id]
        scheduler = self._scheduler
        assert sorted(group.arrival for group in groups) == [
            group.arrival for group in [*scheduler.running, *scheduler.waiting]
        ]
        scheduler.check()


def _prolong(chunks: list[Chunk], runs: list[list[int]]) -> list[Chunk]:
    """The chunks of a burst's first step become those of all its steps; each sequence gets its run."""
    for chunk, run in zip(chunks, runs, strict=True):
        chunk.sequence.token_ids += run
    return [chunk._replace(num_new=1 + len(run)) for chunk, run in zip(chunks, runs, strict=True)]
