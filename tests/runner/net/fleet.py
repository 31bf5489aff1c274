"""Mocker engines behind a router in simulated time: what a way of routing is worth, without a clock or a process.

The engines are the real ones (blocks, prefix cache, chunked prefill), the router too, and the counting of what runs is
that of engines/remote.py; only waiting is skipped.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from runner.engines.base import StepOutput
from runner.engines.mock_blocks import BlockPool
from runner.engines.mocker import MockEngine, MockOptions
from runner.net.routing import Prediction, Router
from runner.types import SamplingParams, TokenRequest

_WAY_S = 0.002
"""Between a client and an engine."""


class Outcome(NamedTuple):
    """Prompt tokens out of the caches, and the mean time to the first token."""

    hits: int
    mean_first_s: float


class _Engine(MockEngine):
    """Tells how long a step takes instead of taking it."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self._options = MockOptions(block_size=16, num_gpu_blocks=num_blocks, prefill_us_per_token=100.0)
        self._ids = list(range(300, 400))
        self._context_length = 8192
        self._pool = BlockPool(num_blocks, enable_prefix_caching=True)
        self.step_s = 0.0

    def _take_time(self, num_decode: int, num_prefill: int) -> None:
        options = self._options
        step_us = options.decode_base_us + options.decode_us_per_seq * num_decode
        self.step_s = (step_us + options.prefill_us_per_token * num_prefill) / 1e6


@dataclass
class _Worker:
    id: int
    engine: _Engine
    is_busy: bool = False
    num_running: int = 0
    unread_blocks: int = 0


@dataclass
class _Call:
    worker: _Worker
    sent_s: float
    unread: int
    predicted: Prediction | None


@dataclass
class Fleet:
    """`num_workers` with a cache of `num_blocks` blocks of 16 tokens each, and one router. Good for one `run`."""

    router: Router
    num_workers: int = 4
    num_blocks: int = 1536
    _queue: list[Any] = field(default_factory=list)
    _num_events: int = 0
    _calls: dict[str, _Call] = field(default_factory=dict)
    _hits: int = 0
    _firsts_s: list[float] = field(default_factory=list)

    def run(self, prompts: Iterator[list[int]], at_once: int, max_tokens: int = 16) -> Outcome:
        """A closed loop of `at_once` clients."""
        workers = [_Worker(number, _Engine(self.num_blocks)) for number in range(1, self.num_workers + 1)]
        for _ in range(at_once):
            self._soon(0.0, "send", None)
        while self._queue:
            now, _, kind, what = heapq.heappop(self._queue)
            if kind == "send" and (prompt := next(prompts, None)) is not None:
                self._send(workers, prompt, max_tokens, now)
            elif kind == "arrive":
                self._calls[what.id].worker.engine.add(what)
                self._step(self._calls[what.id].worker, now)
            elif kind == "made":
                self._made(*what, now)
        return Outcome(self._hits, sum(self._firsts_s) / len(self._firsts_s))

    def _send(self, workers: list[_Worker], prompt: list[int], max_tokens: int, now: float) -> None:
        greedy = SamplingParams(temperature=0.0)
        request = TokenRequest(id=f"r{len(self._calls)}", token_ids=prompt, sampling=greedy, max_tokens=max_tokens)
        worker = workers[self.router.pick(workers, prompt)]
        unread = self.router.num_blocks(prompt)
        worker.num_running += 1
        worker.unread_blocks += unread
        self._calls[request.id] = _Call(worker, now, unread, self.router.last)
        self._soon(now + _WAY_S, "arrive", request)

    def _made(self, worker: _Worker, outputs: list[StepOutput], now: float) -> None:
        worker.is_busy = False
        for output in outputs:
            call, delta = self._calls[output.id], output.delta
            assert delta is not None
            if delta.cached_tokens is not None:
                self._hits += delta.cached_tokens
                self._firsts_s.append(now + _WAY_S - call.sent_s)
                self._read(call, delta.cached_tokens)
            if delta.finish:
                worker.num_running -= 1
                self._soon(now + _WAY_S, "send", None)
        self._step(worker, now)

    def _read(self, call: _Call, cached_tokens: int) -> None:
        call.worker.unread_blocks -= call.unread
        if call.predicted is not None:
            self.router.correct(call.predicted, cached_tokens)
            self.router.settle(call.predicted)

    def _step(self, worker: _Worker, now: float) -> None:
        if not worker.is_busy and worker.engine.has_work():
            worker.is_busy = True
            outputs: list[StepOutput] = worker.engine.step()
            self._soon(now + worker.engine.step_s, "made", (worker, outputs))

    def _soon(self, at_s: float, kind: str, what: Any) -> None:
        self._num_events += 1
        heapq.heappush(self._queue, (at_s, self._num_events, kind, what))


def shared_prefixes(num_prompts: int, num_prefixes: int, prefix_len: int = 2680, seed: int = 7) -> Iterator[list[int]]:
    """Prompts that begin with one of so many prefixes and end with 45 tokens of their own."""
    rng = random.Random(seed)
    prefixes = [[rng.randrange(300, 60_000) for _ in range(prefix_len)] for _ in range(num_prefixes)]
    for _ in range(num_prompts):
        yield rng.choice(prefixes) + [rng.randrange(300, 60_000) for _ in range(45)]
