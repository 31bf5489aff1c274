"""Scheduler: which tokens of which sequences the next step computes, and the blocks for them.

There is no prefill phase and no decode phase: each sequence's `num_computed` chases its tokens under a budget (the idea
of vLLM's V1 scheduler). Owns waiting and running groups, blocks and tables; knows no samples and no answers.

Why it neither starves nor deadlocks: `running + waiting` is always in order of arrival. A step serves the running from
the oldest on; where blocks run out, the youngest gives all of its own back and waits in front. A waiting one is
admitted only from the front. No request may need more blocks than there are, so the oldest always gets on.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from runner.engines.native.blocks import BlockPool, extend_hashes, root_hash
from runner.engines.native.plan import StepPlan
from runner.engines.native.sequence import Group, Sequence
from runner.engines.native.tables import BlockTables, Chunk

_PLAIN = root_hash(b"")
"""The salt of prefixes that all share who use no adapter: only these are told to the log."""


@dataclass(frozen=True)
class CoreConfig:
    """Sizes that are fixed for the life of a Core."""

    num_blocks: int
    block_size: int
    max_running: int
    """Sequences at once; a beam search counts its width."""
    max_batched_tokens: int
    """Token budget of a step."""
    context_length: int
    vocab_size: int
    prefix_cache: bool = True
    max_queue: int | None = None
    """Waiting requests before EngineBusy; None is unbounded."""


@dataclass(frozen=True)
class Scheduled:
    """One step to compute: plain data for the executor, and whose it is."""

    plan: StepPlan
    chunks: list[Chunk]

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences of plan.sample_rows, in that order."""
        return [chunk.sequence for chunk in self.chunks if chunk.samples]


@dataclass
class _Step:
    """A step in the making."""

    budget: int
    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    def take(self, sequence: Sequence) -> None:
        """As many tokens of it as the budget allows."""
        start = sequence.num_computed
        remaining = len(sequence.token_ids) - start
        num_new = min(remaining, self.budget)
        self.budget -= num_new
        self.chunks.append(Chunk(sequence, start, num_new, num_new == remaining))


class Scheduler:
    """First come, first served."""

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._block_size = config.block_size
        self.pool = BlockPool(config.num_blocks)
        width = min(config.num_blocks, self._num_blocks(config.context_length))
        self._tables = BlockTables(config.max_running, width, config.block_size)
        self.waiting: OrderedDict[Group, None] = OrderedDict()
        self.running: list[Group] = []
        self._num_seats = 0
        """Sequences that the running groups may come to."""
        self.num_preempted = 0
        self.num_query_tokens = 0
        self.num_hit_tokens = 0

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def add(self, group: Group) -> None:
        """Queue it. It fits when alone: the caller has checked `Group.max_blocks` and `Group.width`."""
        self.waiting[group] = None

    def finish(self, group: Group) -> None:
        """It is over, in whatever state: its blocks are free at once and stay as a prefix for others."""
        group.is_open = False
        if group in self.waiting:
            del self.waiting[group]
        else:
            self.running.remove(group)
            self._vacate(group)

    def preempt(self, group: Group) -> None:
        """Take a running group's blocks, keep its tokens; it waits, its old place in the order kept."""
        self.running.remove(group)
        self._vacate(group)
        self.waiting[group] = None
        self.waiting.move_to_end(group, last=False)
        self.num_preempted += 1

    def _vacate(self, group: Group) -> None:
        self._num_seats -= group.width
        for sequence in group.sequences:
            if not sequence.is_waiting:
                self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.free_all(sequence.block_ids)
        self._tables.release(sequence)
        sequence.num_computed = sequence.num_registered = 0
        sequence.pending = None

    def schedule(self) -> Scheduled | None:
        """The next step, blocks provided; None where nothing runs or waits."""
        step = _Step(self._config.max_batched_tokens)
        num_preempted = self.num_preempted
        self._continue(step)
        if self.waiting and self.num_preempted == num_preempted:
            self._admit(step)
        if not step.chunks:
            assert not self.running and not self.waiting, "there is always a request that can go on"
            return None
        return Scheduled(self._tables.make_plan(step.chunks, step.copies), step.chunks)

    def _continue(self, step: _Step) -> None:
        """Serve the running, oldest first. `running` may lose its end meanwhile."""
        at = 0
        while at < len(self.running) and step.budget:
            group = self.running[at]
            at += 1
            if group.search is not None:
                self._continue_beams(group, step)
                continue
            sequence = group.sequences[0]
            if len(sequence.token_ids) <= len(sequence.block_ids) * self._block_size or self._make_room(sequence, step):
                step.take(sequence)

    def _continue_beams(self, group: Group, step: _Step) -> None:
        """Beams go in step; after a preemption the first comes back before the others, which then share its prefix."""
        before = step.budget, len(step.chunks), len(step.copies)
        leader = group.sequences[0]
        for sequence in group.sequences:
            if sequence.pending is not None or not step.budget:
                continue
            if sequence.is_waiting and leader.pending is None:
                continue
            if not self._make_room(sequence, step):
                step.budget, num_chunks, num_copies = before
                del step.chunks[num_chunks:], step.copies[num_copies:]
                return
            step.take(sequence)

    def _make_room(self, sequence: Sequence, step: _Step) -> bool:
        """Provide blocks for all its tokens, at the cost of younger groups. False if its own group had to go."""
        while not self._provide(sequence, step):
            victim = self.running[-1]
            self.preempt(victim)
            if victim is sequence.group:
                return False
        return True

    def _provide(self, sequence: Sequence, step: _Step) -> bool:
        if sequence.is_waiting:
            return self._place(sequence, self._find_prefix(sequence), reserve=0)
        num_missing = self._num_blocks(len(sequence.token_ids)) - len(sequence.block_ids)
        index = sequence.num_computed // self._block_size
        must_copy = index < len(sequence.block_ids) and self.pool.is_shared(sequence.block_ids[index])
        if self.pool.num_free < num_missing + must_copy:
            return False
        if must_copy:
            old, new = sequence.block_ids[index], self.pool.allocate()
            step.copies.append((old, new))
            self._tables.replace(sequence, index, new)
            self.pool.free(old)
        for _ in range(num_missing):
            self._tables.append(sequence, self.pool.allocate())
        return True

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """The cached blocks that it can start with."""
        num_tokens = len(sequence.token_ids)
        extend_hashes(sequence.hashes, sequence.token_ids, self._block_size, sequence.group.salt, num_tokens)
        return self.pool.find(sequence.hashes[: self._num_sharable(sequence)])

    def _num_sharable(self, sequence: Sequence) -> int:
        """Full blocks of its tokens but the last: that one is computed in any case, for its logits.

        Where only the last token is missing its whole block is computed again: nobody writes to a shared block.
        """
        return (len(sequence.token_ids) - 1) // self._block_size

    def _place(self, sequence: Sequence, prefix: list[int], reserve: int) -> bool:
        """Give it a row and blocks for all its tokens, if `reserve` blocks stay free besides."""
        num_missing = self._num_blocks(len(sequence.token_ids)) - len(prefix)
        if self.pool.num_free - self.pool.num_idle(prefix) < num_missing + reserve:
            return False
        for block in prefix:
            self.pool.share(block)
        sequence.block_ids = prefix + [self.pool.allocate() for _ in range(num_missing)]
        sequence.num_registered = len(prefix)
        sequence.num_computed = len(prefix) * self._block_size
        self._tables.take(sequence)
        return True

    def _admit(self, step: _Step) -> None:
        """Start the waiting, in order, while seats, blocks and budget last.

        For every second sequence that runs a block stays free, to grow into. One whose prefix is being computed in
        this very step waits for the next one, to share it (several answers to one prompt).
        """
        if self._num_seats == self._config.max_running:
            return
        in_work = {one for chunk in step.chunks if chunk.num_new > 1 for one in self._hashes_of(chunk)}
        while self.waiting and step.budget:
            group = next(iter(self.waiting))
            leader = group.sequences[0]
            reserve = self._num_seats // 2 if step.chunks else 0
            if self._num_seats + group.width > self._config.max_running or self.pool.num_free <= reserve:
                return
            prefix = self._find_prefix(leader)
            if len(prefix) < self._num_sharable(leader) and leader.hashes[len(prefix)] in in_work:
                return
            if not self._place(leader, prefix, reserve):
                return
            self._start(group, step)
            in_work.update(self._hashes_of(step.chunks[-1]))

    def _hashes_of(self, chunk: Chunk) -> list[bytes]:
        """Of the blocks that this chunk completes, where they are known: in prompts."""
        end = chunk.start + chunk.num_new
        return chunk.sequence.hashes[chunk.start // self._block_size : end // self._block_size]

    def _start(self, group: Group, step: _Step) -> None:
        leader = group.sequences[0]
        self.waiting.popitem(last=False)
        self.running.append(group)
        self._num_seats += group.width
        if group.num_cached is None:
            group.num_cached = min(leader.num_computed, leader.prompt_len)
            self.num_query_tokens += leader.prompt_len
            self.num_hit_tokens += group.num_cached
        step.take(leader)

    def mark_computed(self, chunks: list[Chunk]) -> None:
        """K and V of these chunks are in the cache; blocks that became full may be shared from now on."""
        size = self._block_size
        for sequence, start, num_new, _ in chunks:
            if sequence.group.is_open:
                sequence.num_computed = start + num_new
                if sequence.num_computed // size > sequence.num_registered:
                    self._register(sequence)

    def _register(self, sequence: Sequence) -> None:
        num_full = sequence.num_computed // self._block_size
        extend_hashes(sequence.hashes, sequence.token_ids, self._block_size, sequence.group.salt, sequence.num_computed)
        for index in range(sequence.num_registered, num_full):
            mine = sequence.block_ids[index]
            block = self.pool.register(mine, sequence.hashes[index])
            if block != mine:
                self._tables.replace(sequence, index, block)
        if self.pool.log.is_on and sequence.group.salt == _PLAIN:
            self._log_stored(sequence, sequence.num_registered, num_full)
        sequence.num_registered = num_full

    def _log_stored(self, sequence: Sequence, first: int, end: int) -> None:
        """Once more where another sequence had stored them: that does no harm."""
        size, hashes = self._block_size, sequence.hashes
        parent = hashes[first - 1] if first else b""
        self.pool.log.stored(hashes[first:end], parent, sequence.token_ids[first * size : end * size])

    def branch(self, group: Group, parents: list[int]) -> None:
        """Beams part: sequence i of the group becomes a continuation of the present sequence `parents[i]`.

        Forks share all blocks; who writes first to one that is not full copies it.
        """
        present = group.sequences
        for index, sequence in enumerate(present):
            if index not in parents:
                self._release(sequence)
        group.sequences = [
            present[parent] if parent not in parents[:at] else self._fork(present[parent])
            for at, parent in enumerate(parents)
        ]

    def _fork(self, sequence: Sequence) -> Sequence:
        sampling = sequence.sampling.fork() if sequence.sampling is not None else None
        child = Sequence(sequence.group, list(sequence.token_ids), sampling)
        child.num_computed = sequence.num_computed
        child.num_registered = sequence.num_registered
        child.hashes = list(sequence.hashes)
        child.block_ids = list(sequence.block_ids)
        for block in child.block_ids:
            self.pool.share(block)
        self._tables.take(child)
        return child

    def check(self) -> None:
        """Assert every invariant."""
        order = [group.arrival for group in [*self.running, *self.waiting]]
        assert order == sorted(order), "first come, first served"
        assert all(group.is_open for group in [*self.running, *self.waiting])
        assert self._num_seats == sum(group.width for group in self.running) <= self._config.max_running
        assert all(sequence.is_waiting for group in self.waiting for sequence in group.sequences)
        sequences = [sequence for group in self.running for sequence in group.sequences]
        for sequence in sequences:
            self._check_sequence(sequence)
        placed = [sequence for sequence in sequences if not sequence.is_waiting]
        self._tables.check(placed)
        self.pool.check([sequence.block_ids for sequence in placed])

    def _check_sequence(self, sequence: Sequence) -> None:
        num_registered, size = sequence.num_registered, self._block_size
        assert 0 <= num_registered <= sequence.num_computed // size <= len(sequence.block_ids)
        assert sequence.num_computed <= len(sequence.token_ids)
        assert (sequence.pending is not None) <= (sequence.num_computed == len(sequence.token_ids))
        for index in range(num_registered):
            assert self.pool.hash_of(sequence.block_ids[index]) == sequence.hashes[index]
        for block in sequence.block_ids[num_registered:]:
            assert self.pool.hash_of(block) is None, "what may still be written to is in nobody's cache"
            assert sequence.group.search is not None or not self.pool.is_shared(block)
