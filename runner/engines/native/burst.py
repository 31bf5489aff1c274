"""Burst: several greedy steps in one call of the model, where a step takes less time than the Python around it (CPU).

Owns who may take part and how far. kernels/cpu/decoder.h computes it, Core.commit takes it in; the ids are those of
single steps. All sequences make equally many steps and stay in the blocks that they hold, so nothing is allocated ahead
and nothing given back: a burst ends where the first of them fills a block or ends its answer, or when its time is up.
Who arrives or is cancelled meanwhile waits for no longer than that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runner.engines.native.plan import Int32
from runner.engines.native.scheduler import Scheduled

BURST_S = 0.003
"""About the time that deltas wait for each other on their way out (peers.PACE_S), or less: nobody hears of it later."""


@dataclass(frozen=True)
class Burst:
    """The limits of one, beyond the step that is scheduled."""

    max_steps: int
    stop_ids: Int32
    """Of any sequence: a step that makes one is the last."""
    limit_us: int = int(BURST_S * 1e6)


def make_burst(scheduled: Scheduled, block_size: int) -> Burst | None:
    """How far this step may go on by itself; None where it should not, since anybody's next token is not plain greedy.

    Each `sampling` is a SamplingState. First tokens are no part of a burst: nothing holds them up.
    """
    room, stop_ids = 1 << 30, set[int]()
    for sequence, _, num_new, samples in scheduled.chunks:
        group, num_output = sequence.group, sequence.num_output
        if num_new > 1 or not samples or not num_output or not sequence.sampling.is_plain(num_output):
            return None
        room = min(
            room, len(sequence.block_ids) * block_size - len(sequence.token_ids), group.max_tokens - num_output - 1
        )
        stop_ids |= group.stop_ids
    return Burst(1 + room, np.array(list(stop_ids), np.int32)) if room else None
