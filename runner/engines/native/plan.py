"""StepPlan: what one step of the engine computes, as plain data. Torch-free; all ranks receive the same plan.

Owns the layout only. The scheduler makes plans, the executor turns them into tensors.

    token_ids     | t0 t1 t2 t3 | u7 | v0 v1 |      three sequences: a prefill chunk, a decode, another chunk
    positions     |  0  1  2  3 |  7 |  0  1 |
    query_starts  | 0           | 4  | 5     | 7    row of the first token of each sequence, and the end
    context_lens  | 4           | 8  | 2     |      tokens whose K and V are in the cache after this step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class StepPlan:
    """One step, flattened over sequences; decodes and prefill chunks are not told apart."""

    token_ids: Int32
    """[tokens]"""
    positions: Int32
    """[tokens]"""
    slots: Int32
    """[tokens]: where K and V of each token go, block * block_size + offset."""
    query_starts: Int32
    """[sequences + 1]"""
    context_lens: Int32
    """[sequences]"""
    block_tables: Int32
    """[sequences, width]: the blocks of each sequence in order; 0 past its end (never read)."""
    sample_rows: Int32
    """[samples]: rows of the flattened tokens whose logits are wanted, ascending."""
    copies: Int32
    """[copies, 2]: blocks (from, to) whose K and V are copied before anything else in the step (copy on write)."""

    @property
    def num_tokens(self) -> int:
        """Rows of the step."""
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        """Sequences in the step."""
        return len(self.context_lens)

    @staticmethod
    def of_prompts(prompts: Sequence[Int32]) -> StepPlan:
        """Whole prompts that own no blocks: without a cache, or while nobody else uses block 0 and what follows."""
        lengths = [len(prompt) for prompt in prompts]
        starts = np.cumsum([0, *lengths], dtype=np.int32)
        positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        return StepPlan(
            token_ids=np.concatenate(prompts),
            positions=positions,
            slots=positions.copy(),
            query_starts=starts,
            context_lens=np.array(lengths, np.int32),
            block_tables=np.zeros((len(prompts), 1), np.int32),
            sample_rows=starts[1:] - 1,
            copies=np.zeros((0, 2), np.int32),
        )
