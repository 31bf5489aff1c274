"""Engine: our core, graphs and sampler around a model with random weights; what NativeEngine is with a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.place import Place
from runner.engines.native.core import Core, CoreConfig
from runner.engines.native.graphs import DecodeGraphs
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.decoder import Decoder
from runner.engines.native.sampler import Sampler
from runner.engines.native.sampling_state import make_state
from runner.types import TokenRequest
from tests.runner.engines.native.random_models import bind_cache

BLOCK_SIZE = 64


class Engine:
    """`tokens`: room in the KV cache."""

    def __init__(
        self, model: Decoder, place: Place, *, tokens: int, context: int, max_running: int, budget: int
    ) -> None:
        self.model, self.place = model, place
        num_blocks = -(-tokens // BLOCK_SIZE) + 1
        self.cache = bind_cache(model, num_blocks, BLOCK_SIZE, place.dtype)
        vocab_size = model.spec.vocab_size
        self.core = Core(CoreConfig(num_blocks, BLOCK_SIZE, max_running, budget, context, vocab_size))
        self.sampler = Sampler(vocab_size, place.device)
        options: dict[str, Any] = {"capture": lambda run: run} if place.is_toy else {}
        self.graphs = DecodeGraphs(
            model, torch.device(place.device), max_batch=max_running, max_context=context, block_size=BLOCK_SIZE,
            **options,
        )  # fmt: skip
        self.spent: dict[str, float] = {"schedule": 0.0, "launch": 0.0, "sample": 0.0, "commit": 0.0}
        self.num_steps = self.num_graphed = 0

    def add(self, request: TokenRequest) -> None:
        """Queue a request."""
        self.core.add(request, make_state(request, seed=len(request.token_ids)))

    @torch.inference_mode()
    def step(self) -> int:
        """One step; how many tokens it gave. Adds to `spent`, by the host's clock."""
        clock = time.perf_counter
        start = clock()
        scheduled = self.core.schedule()
        assert scheduled is not None
        planned = clock()
        plan = scheduled.plan
        self.cache.copy_blocks(plan.copies)
        is_graphed = self.graphs.fits(plan)
        device = self.place.device
        hidden = self.graphs.run(plan) if is_graphed else self.model(Batch.from_plan(plan, device))
        samples = []
        launched = clock()
        if len(plan.sample_rows):
            rows = hidden if len(plan.sample_rows) == len(hidden) else hidden[torch.from_numpy(plan.sample_rows).long()]
            samples = self.sampler.sample(self.model.logits(rows), scheduled.sampled)
        sampled = clock()
        outputs = self.core.commit(scheduled, samples)
        for name, seconds in zip(
            self.spent, (planned - start, launched - planned, sampled - launched, clock() - sampled), strict=True
        ):
            self.spent[name] += seconds
        self.num_steps += 1
        self.num_graphed += is_graphed
        return sum(len(output.delta.token_ids) for output in outputs if output.delta is not None)

    def run(self, until: Callable[[], bool] | None = None) -> int:
        """Step until all is answered, or `until`; how many tokens came."""
        total = 0
        while self.core.has_work() and not (until is not None and until()):
            total += self.step()
        return total

    def report(self) -> dict[str, Any]:
        """Where the host's time went, milliseconds a step."""
        each = {f"{name}_ms": round(1e3 * spent / max(1, self.num_steps), 3) for name, spent in self.spent.items()}
        return {"steps": self.num_steps, "graphed_steps": self.num_graphed, **each}
