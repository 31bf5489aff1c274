"""A model without weights, executed through plans: each answer depends on all that the plan says.

Its "K and V" of a token are one number, made from the token, its position, the adapter and the K and V of the token
before it, read back through the block table, as in a real model each depends on all before. The next token is made from
all numbers of the context. A wrong slot, table, length, copy or shared prefix changes an answer.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import numpy as np

from runner.engines.base import StepOutput
from runner.engines.native.beams import BeamSearch, num_candidates
from runner.engines.native.burst import Burst
from runner.engines.native.core import Core, Sample, Scheduled
from runner.types import TokenDelta, TokenRequest

VOCAB = 23


def mix(*parts: object) -> int:
    """A number that depends on all parts."""
    return zlib.crc32(repr(parts).encode())


def key_values(token_ids: list[int], adapter: str | None) -> list[int]:
    """K and V of a whole sequence, without a cache."""
    values: list[int] = []
    for position, token in enumerate(token_ids):
        values.append(mix(values[-1] if values else 0, token, position, adapter))
    return values


def choose(values: list[int]) -> int:
    """Greedy."""
    return mix(values) % VOCAB


def candidates(values: list[int], count: int) -> list[tuple[int, float]]:
    """The best tokens and float32 log-probabilities; no two alike."""
    logits = np.random.default_rng(mix(values)).normal(size=VOCAB) * 2
    logprobs = (logits - math.log(np.exp(logits).sum())).astype(np.float32)
    best = np.argsort(-logprobs)[:count]
    return [(int(token), float(logprobs[token])) for token in best]


def naive(request: TokenRequest) -> tuple[list[int], str]:
    """The answer and its end, one request alone, everything computed anew for each token."""
    if request.sampling.beam_width > 1:
        return _naive_beams(request)
    ids = list(request.token_ids)
    for _ in range(request.max_tokens):
        token = choose(key_values(ids, request.adapter))
        if token in request.stop_token_ids:
            return ids[len(request.token_ids) :], "stop"
        ids.append(token)
    return ids[len(request.token_ids) :], "length"


def _naive_beams(request: TokenRequest) -> tuple[list[int], str]:
    search, beams = BeamSearch(request), [list(request.token_ids)]
    while True:
        rows = [candidates(key_values(beam, request.adapter), num_candidates(request)) for beam in beams]
        picks = search.advance(rows)
        if not picks:
            token_ids, finish, _, _ = search.best()
            return token_ids, finish
        beams = [[*beams[pick.parent], pick.token_id] for pick in picks]


class FakeModel:
    """Executor and sampler in one."""

    def __init__(self, num_blocks: int, block_size: int, *, most_steps: int = 1) -> None:
        """`most_steps`: how many steps of a burst there is time for; 1 means that there are no bursts."""
        self.most_steps = most_steps
        self.cache = np.full(num_blocks * block_size, -1, np.int64)
        self.block_size = block_size

    def compute(self, scheduled: Scheduled) -> list[Sample]:
        """Execute the plan, sample its rows."""
        plan = scheduled.plan
        self._check_layout(scheduled)
        self._copy(plan.copies)
        contexts = []
        for index, chunk in enumerate(scheduled.chunks):
            first, end = plan.query_starts[index : index + 2]
            length = int(plan.context_lens[index])
            slots = self._slots(plan.block_tables[index], length)
            for row in range(first, end):
                position = int(plan.positions[row])
                assert plan.slots[row] == slots[position]
                before = int(self.cache[slots[position - 1]]) if position else 0
                adapter = chunk.sequence.request.adapter
                self.cache[slots[position]] = mix(before, int(plan.token_ids[row]), position, adapter)
            contexts.append([int(value) for value in self.cache[slots]])
        sampled = [index for index, chunk in enumerate(scheduled.chunks) if chunk.samples]
        assert [int(plan.query_starts[index + 1]) - 1 for index in sampled] == plan.sample_rows.tolist()
        return [self._sample(contexts[index], scheduled.chunks[index].sequence.request) for index in sampled]

    def burst(self, scheduled: Scheduled, burst: Burst) -> list[list[int]]:
        """What decoder.h's burst does: tokens [steps][sequences]."""
        plan, steps = scheduled.plan, list[list[int]]()
        while True:
            steps.append([sample.token_id for sample in self.compute(replace(scheduled, plan=plan))])
            if len(steps) == min(burst.max_steps, self.most_steps) or set(steps[-1]) & set(burst.stop_ids.tolist()):
                return steps
            plan = replace(
                plan,
                token_ids=np.array(steps[-1], np.int32),
                positions=plan.positions + np.int32(1),
                slots=plan.slots + np.int32(1),
                context_lens=plan.context_lens + np.int32(1),
            )

    def _slots(self, table: np.ndarray, length: int) -> np.ndarray:
        positions = np.arange(length)
        return table[positions // self.block_size] * self.block_size + positions % self.block_size

    def _copy(self, copies: np.ndarray) -> None:
        sources, targets = set(copies[:, 0].tolist()), copies[:, 1].tolist()
        assert len(set(targets)) == len(targets)
        assert not sources & set(targets), "copies may run in any order"
        blocks = self.cache.reshape(-1, self.block_size)
        for source, target in copies:
            blocks[target] = blocks[source]

    def _sample(self, context: list[int], request: TokenRequest) -> Sample:
        if request.sampling.beam_width > 1:
            return Sample(-1, candidates=candidates(context, num_candidates(request)))
        return Sample(choose(context))

    def _check_layout(self, scheduled: Scheduled) -> None:
        plan = scheduled.plan
        for array in (plan.token_ids, plan.positions, plan.slots, plan.query_starts, plan.block_tables, plan.copies):
            assert array.dtype == np.int32
        assert plan.sample_rows.dtype == plan.context_lens.dtype == np.int32
        assert plan.num_tokens == plan.query_starts[-1] == len(plan.positions) == len(plan.slots)
        assert np.diff(plan.query_starts).min() >= 1
        assert plan.num_sequences == len(scheduled.chunks) == len(plan.block_tables)
        assert len(set(plan.slots.tolist())) == plan.num_tokens, "no slot is written twice"


class Client:
    """What requests heard, checked against the rules of streams."""

    def __init__(self) -> None:
        self.deltas: dict[str, list[TokenDelta]] = {}
        self.errors: dict[str, str] = {}

    def hear(self, outputs: list[StepOutput]) -> None:
        """Take one step's outputs."""
        for output in outputs:
            assert output.id not in self.errors
            heard = self.deltas.setdefault(output.id, [])
            assert not heard or heard[-1].finish is None, "something came after the end"
            if output.delta is None:
                assert output.error and output.error_kind == "engine"
                self.errors[output.id] = output.error
            else:
                heard.append(output.delta)

    def answer(self, request_id: str) -> tuple[list[int], str | None]:
        """Ids and finish so far."""
        deltas = self.deltas[request_id]
        assert deltas[0].cached_tokens is not None
        assert all(delta.cached_tokens is None for delta in deltas[1:])
        return [token for delta in deltas for token in delta.token_ids], deltas[-1].finish


def run(core: Core, model: FakeModel, client: Client, max_steps: int = 100_000) -> None:
    """Step until nothing is left to do."""
    for _ in range(max_steps):
        if not core.has_work():
            return
        step(core, model, client)
    raise AssertionError("it does not end")


def step(core: Core, model: FakeModel, client: Client) -> Scheduled:
    """One step, everything checked before and after."""
    scheduled = core.schedule()
    assert scheduled is not None
    core.check()
    burst = core.burst(scheduled) if model.most_steps > 1 else None
    if burst is None:
        client.hear(core.commit(scheduled, model.compute(scheduled)))
    else:
        *runs, last = model.burst(scheduled, burst)
        runs = [list(run) for run in zip(*runs, strict=True)]
        client.hear(core.commit(scheduled, [Sample(token) for token in last], runs))
    core.check()
    return scheduled
