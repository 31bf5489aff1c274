"""BlockTables: the block tables of all that runs, in one array kept between steps, and the plan of a step made from it.

Owns rows and the layout of StepPlan (plan.py); does not decide anything.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from runner.engines.native.plan import StepPlan
from runner.engines.native.sequence import Sequence

_NO_COPIES = np.zeros((0, 2), np.int32)


class Chunk(NamedTuple):
    """Compute tokens [start, start + num_new) of `sequence`."""

    sequence: Sequence
    start: int
    num_new: int
    samples: bool
    """Whether it reaches the last known token, so that the next one can be chosen."""


class BlockTables:
    """`num_rows` sequences at once, of up to `width` blocks each."""

    def __init__(self, num_rows: int, width: int, block_size: int) -> None:
        self._table = np.zeros((num_rows, width), np.int32)
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._block_size = block_size
        self._counts = np.arange(num_rows + 1, dtype=np.int32)

    def take(self, sequence: Sequence) -> None:
        """Give it a row, with the blocks that it has."""
        sequence.row = self._free_rows.pop()
        self._table[sequence.row, : len(sequence.block_ids)] = sequence.block_ids

    def append(self, sequence: Sequence, block: int) -> None:
        """One more block at its end."""
        self._table[sequence.row, len(sequence.block_ids)] = block
        sequence.block_ids.append(block)

    def replace(self, sequence: Sequence, index: int, block: int) -> None:
        """Another block in place of number `index`."""
        self._table[sequence.row, index] = block
        sequence.block_ids[index] = block

    def release(self, sequence: Sequence) -> None:
        """Take its row and its blocks from it."""
        self._table[sequence.row, : len(sequence.block_ids)] = 0
        self._free_rows.append(sequence.row)
        sequence.row = -1
        sequence.block_ids = []

    def make_plan(self, chunks: list[Chunk], copies: list[tuple[int, int]]) -> StepPlan:
        """Flatten. `chunks` is not empty."""
        if all(num_new == 1 and samples for _, _, num_new, samples in chunks):
            return self._make_decode_plan(chunks, copies)
        sequences, starts_of, counts_of, samples = zip(*chunks, strict=True)
        starts, counts = np.array(starts_of, np.int32), np.array(counts_of, np.int32)
        query_starts = np.zeros(len(chunks) + 1, np.int32)
        np.cumsum(counts, out=query_starts[1:])
        context_lens = starts + counts
        owners = np.repeat(np.arange(len(chunks), dtype=np.int32), counts)
        positions = np.arange(len(owners), dtype=np.int32) + (starts - query_starts[:-1])[owners]
        width = -(-int(context_lens.max()) // self._block_size)
        block_tables = self._table[[sequence.row for sequence in sequences], :width]
        blocks = block_tables[owners, positions // self._block_size]
        return StepPlan(
            token_ids=np.array(_token_ids(chunks), np.int32),
            positions=positions,
            slots=blocks * np.int32(self._block_size) + positions % self._block_size,
            query_starts=query_starts,
            context_lens=context_lens,
            block_tables=block_tables,
            sample_rows=query_starts[1:][np.array(samples)] - np.int32(1),
            copies=np.array(copies, np.int32).reshape(-1, 2),
        )

    def _make_decode_plan(self, chunks: list[Chunk], copies: list[tuple[int, int]]) -> StepPlan:
        """The same where each sequence gets its last token, with little numpy: for one sequence its calls are dear."""
        size = self._block_size
        lines = [
            (one.row, one.token_ids[at], at, one.block_ids[at // size] * size + at % size, at + 1)
            for one, at, _, _ in chunks
        ]
        rows, *columns = zip(*lines, strict=True)
        token_ids, positions, slots, context_lens = np.array(columns, np.int32)
        width = -(-max(columns[-1]) // size)
        return StepPlan(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            query_starts=self._counts[: len(chunks) + 1],
            context_lens=context_lens,
            block_tables=self._table[list(rows), :width],
            sample_rows=self._counts[: len(chunks)],
            copies=np.array(copies, np.int32) if copies else _NO_COPIES,
        )

    def check(self, sequences: list[Sequence]) -> None:
        """Assert every invariant, given all sequences that have blocks."""
        rows = [sequence.row for sequence in sequences]
        assert sorted([*rows, *self._free_rows]) == list(range(len(self._table))), "each row is taken or free, once"
        for sequence in sequences:
            num_blocks = len(sequence.block_ids)
            assert self._table[sequence.row, :num_blocks].tolist() == sequence.block_ids
            assert not self._table[sequence.row, num_blocks:].any(), "0 past the end"
        assert not self._table[self._free_rows].any()


def _token_ids(chunks: list[Chunk]) -> list[int]:
    flat: list[int] = []
    for sequence, start, num_new, _ in chunks:
        if num_new == 1:
            flat.append(sequence.token_ids[start])
        else:
            flat += sequence.token_ids[start : start + num_new]
    return flat
