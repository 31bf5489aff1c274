"""Penalties: repetition, presence and frequency, applied on the device to the few tokens that were seen.

Owns one row of two tables for each penalised stream, kept from step to step; only what changed is uploaded. Sparse,
since a stream has seen hundreds of tokens of a vocabulary of 150,000.

    ids      | 17 | 4 | 93 |  |  |      distinct tokens in order of appearance (of the output only, if the repetition
    counts   |  0 | 2 |  1 |  |  |      penalty is off), and how often each is in the output
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runner.engines.native.layers.batch import upload
from runner.engines.native.sampling_state import SamplingState, Stream


class Penalties:
    """The tables of all penalised streams. A row comes back when its SamplingState is gone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ids = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self._counts = torch.zeros(0, 0, dtype=torch.float32, device=device)
        self._free: list[int] = []

    def apply(self, logits: Tensor, rows: Sequence[int], streams: Sequence[Stream]) -> None:
        """Penalise `rows` of `logits` [any, vocab] in place; `streams` are theirs, with a tally each."""
        changes, table = [], []
        for row, stream in zip(rows, streams, strict=True):
            state, tally = stream.sampling, stream.sampling.tally
            assert tally is not None
            slot = self._slot(state)
            for column in tally.advance(stream.token_ids, stream.prompt_len):
                changes.append((slot, column, tally.ids[column], tally.counts[column]))
            params = state.params
            penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
            if len(tally.ids):
                table.append((row, slot, len(tally.ids), *penalties))
        if changes:
            self._write(np.array(changes, np.int64))
        if table:
            self._penalise(logits, np.array(table, np.float64))

    def _slot(self, state: SamplingState) -> int:
        if state.slot is None:
            if not self._free:
                self._grow(num_rows=max(8, 2 * len(self._ids)), width=self._ids.shape[1])
            state.slot = self._free.pop()
            weakref.finalize(state, self._free.append, state.slot)
        return state.slot

    def _write(self, changes: NDArray[np.int64]) -> None:
        """`changes` [changes, 4]: slot, column, token, count."""
        width = int(changes[:, 1].max()) + 1
        if width > self._ids.shape[1]:
            self._grow(num_rows=len(self._ids), width=max(64, 2 * width))
        slots, columns, tokens, counts = upload(changes, self._device).unbind(1)
        self._ids[slots, columns] = tokens
        self._counts[slots, columns] = counts.float()

    def _grow(self, *, num_rows: int, width: int) -> None:
        before, before_width = self._ids.shape
        ids, counts = self._ids.new_zeros(num_rows, width), self._counts.new_zeros(num_rows, width)
        ids[:before, :before_width], counts[:before, :before_width] = self._ids, self._counts
        self._ids, self._counts = ids, counts
        self._free.extend(range(before, num_rows))

    def _penalise(self, logits: Tensor, table: NDArray[np.float64]) -> None:
        width = int(table[:, 2].max())
        columns = upload(table, self._device)
        rows, slots, lengths = torch.split(columns[:, :3].long(), 1, dim=1)
        repetition, frequency, presence = torch.split(columns[:, 3:].float(), 1, dim=1)
        ids, counts = self._ids[slots[:, 0], :width], self._counts[slots[:, 0], :width]
        # What is past the end repeats the first token: it is then written twice, with one value.
        is_used = torch.arange(width, device=self._device) < lengths
        ids = torch.where(is_used, ids, ids[:, :1])
        counts = torch.where(is_used, counts, counts[:, :1])
        values = logits[rows, ids]
        values = torch.where(values > 0, values / repetition, values * repetition)
        logits[rows, ids] = values - frequency * counts - presence * (counts > 0)
