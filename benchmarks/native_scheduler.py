"""out=native: what scheduling and committing cost for each sequence of a step, on one core, without any model.

256 sequences run. Once all only decode, blocks allocated and prefixes hashed as they grow; once a finished request is
followed by the next at each step, so that prompt chunks, admissions and ends are mixed in.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

from benchmarks.client import median
from benchmarks.row import Row
from benchmarks.settings import Settings
from runner.engines.native.core import Core, CoreConfig, Sample
from runner.types import TokenRequest

NUM_RUNNING = 256
BLOCK_SIZE = 16
PROMPT_LEN = 512
BAR_US = 20.0


def measure(settings: Settings) -> list[Row]:
    """Rows for decode only and for mixed steps."""
    num_steps = 50 if settings.is_quick else 400
    return [
        _row("decode only", [_decode_us(num_steps) for _ in range(settings.repeats)]),
        _row("decode, prompts and ends mixed", [_mixed_us(num_steps) for _ in range(settings.repeats)]),
    ]


def _row(what: str, costs_us: list[float]) -> Row:
    cost_us = median(costs_us)
    return Row(
        what=f"schedule + commit, {NUM_RUNNING} running, {what}",
        ours=f"{cost_us:.1f} us per sequence-step ({min(costs_us):.1f} to {max(costs_us):.1f})",
        bar=f"<= {BAR_US:g} us",
        is_met=cost_us <= BAR_US,
        notes=[
            f"CPU time; block size {BLOCK_SIZE}, prompts of {PROMPT_LEN} tokens; execution and sampling not counted"
        ],
    )


def _make_core() -> Core:
    return Core(
        CoreConfig(
            num_blocks=NUM_RUNNING * 80,
            block_size=BLOCK_SIZE,
            max_running=NUM_RUNNING,
            max_batched_tokens=8192,
            context_length=32768,
            vocab_size=150_000,
        )
    )


def _request(dice: random.Random, number: int, max_tokens: int) -> TokenRequest:
    prompt = dice.choices(range(150_000), k=PROMPT_LEN)
    return TokenRequest(id=str(number), token_ids=prompt, max_tokens=max_tokens, stop_token_ids=(0, 1))


def _decode_us(num_steps: int) -> float:
    dice, core = random.Random(1), _make_core()
    for number in range(NUM_RUNNING):
        core.add(_request(dice, number, 600))
    while core.stats()["num_running"] < NUM_RUNNING:
        _step(core)
    _step(core)
    return _cost_us(core, num_steps, lambda: None)


def _mixed_us(num_steps: int) -> float:
    dice, core, numbers = random.Random(2), _make_core(), itertools.count()
    for _ in range(2 * NUM_RUNNING):
        core.add(_request(dice, next(numbers), dice.randrange(8, 256)))

    def refill() -> None:
        while core.stats()["num_waiting"] < 4:
            core.add(_request(dice, next(numbers), dice.randrange(128, 256)))

    for _ in range(50):
        _step(core)
    return _cost_us(core, num_steps, refill)


def _cost_us(core: Core, num_steps: int, between: Callable[[], None]) -> float:
    """Microseconds for each sequence of each step."""
    spent_s, num_sequences = 0.0, 0
    for _ in range(num_steps):
        between()
        step_s, step_sequences = _step(core)
        spent_s += step_s
        num_sequences += step_sequences
    return 1e6 * spent_s / num_sequences


def _step(core: Core) -> tuple[float, int]:
    """CPU seconds spent in the core, and sequences in the step."""
    began = time.thread_time()
    scheduled = core.schedule()
    scheduled_at = time.thread_time()
    assert scheduled is not None
    samples = [Sample(7) for _ in range(len(scheduled.plan.sample_rows))]
    sampled_at = time.thread_time()
    core.commit(scheduled, samples)
    return time.thread_time() - sampled_at + scheduled_at - began, scheduled.plan.num_sequences
