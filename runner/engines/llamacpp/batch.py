"""Batch: a llama_batch whose arrays are numpy's, so that filling it costs a few slices.

Owns the memory that the C struct points at. Does not know requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runner.engines.llamacpp.binding import BatchStruct


class Batch:
    """Up to `capacity` tokens, each of one sequence. `num_tokens` and `num_outputs` are what is in it now."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_tokens = 0
        self.num_outputs = 0
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._sequence_counts = np.ones(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._wants_output = np.zeros(capacity, np.int8)
        # seq_id is an array of pointers: token i points at its own element of _sequences, for ever.
        self._sequence_pointers = self._sequences.ctypes.data + 4 * np.arange(capacity, dtype=np.uint64)
        self.struct = BatchStruct(
            n_tokens=0,
            token=self._tokens.ctypes.data,
            embd=None,
            pos=self._positions.ctypes.data,
            n_seq_id=self._sequence_counts.ctypes.data,
            seq_id=self._sequence_pointers.ctypes.data,
            logits=self._wants_output.ctypes.data,
        )

    def clear(self) -> None:
        """Empty it."""
        self.num_tokens = self.num_outputs = 0

    def add_token(self, token: int, position: int, sequence: int) -> None:
        """One token whose logits are wanted (a decode step)."""
        at = self.num_tokens
        self._tokens[at] = token
        self._positions[at] = position
        self._sequences[at] = sequence
        self._wants_output[at] = 1
        self.num_tokens = at + 1
        self.num_outputs += 1

    def add_chunk(self, tokens: Sequence[int], position: int, sequence: int, *, outputs: str) -> None:
        """Tokens at consecutive positions. `outputs`: `none`, `last` or `all` of them give a row."""
        here = slice(self.num_tokens, self.num_tokens + len(tokens))
        self._tokens[here] = tokens
        self._positions[here] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._sequences[here] = sequence
        self._wants_output[here] = outputs == "all"
        self.num_tokens = here.stop
        if outputs == "last":
            self._wants_output[here.stop - 1] = 1
        self.num_outputs += {"none": 0, "last": 1, "all": len(tokens)}[outputs]

    def ready(self) -> BatchStruct:
        """The C struct for what is in the batch."""
        self.struct.n_tokens = self.num_tokens
        return self.struct
