"""Team: rank 0 with all its peers, started together. Alone, it is only this process's Worker.

Owns the order of a start: peers join, all load, the smallest memory decides the KV cache, all make it. Torch is the
worker's matter.
"""

from __future__ import annotations

from runner.engines.base import EngineSpec
from runner.engines.native.channel import pack_plan
from runner.engines.native.group import open_store
from runner.engines.native.plan import StepPlan
from runner.engines.native.ranks import Ranks
from runner.engines.native.settings import Settings
from runner.engines.native.worker import Progress, Worker, WorkerConfig

_PATIENCE = 0.9
"""Of the start's time limit: we say which rank is missing before the launcher only says that it took too long."""


class Team:
    """All ranks of one engine as seen from rank 0."""

    def __init__(self, spec: EngineSpec, settings: Settings, progress: Progress) -> None:
        self.size = spec.options.tensor_parallel_size
        self._spec, self._settings, self._progress = spec, settings, progress
        self._ranks = Ranks(spec)
        self._patience_s = _PATIENCE * spec.options.start_timeout_s

    def start(self) -> Worker:
        """Everything loaded and warm. Raises EngineStartFailed, ModelFileError, torch.OutOfMemoryError."""
        try:
            if self.size > 1:
                self._progress(f"waiting for {self.size - 1} more rank(s)", None)
                self._ranks.start(self._patience_s)
            return self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> Worker:
        options = self._spec.options
        store = open_store(self.size, options) if self.size > 1 else None
        config = WorkerConfig(
            settings=self._settings,
            size=self.size,
            per_node=self._ranks.layout.per_node,
            base_gpu_id=options.base_gpu_id,
            context_length=options.context_length or 0,
            store=(store.host, store.port) if store is not None else None,
        )
        worker = Worker(config, self._spec.card, self._progress, store)
        self._ranks.send("load", config)
        worker.load()
        num_blocks = min([worker.measure(), *self._ranks.answers(self._patience_s)])
        self._ranks.send("cache", num_blocks)
        self._progress("making the KV cache", None)
        worker.make_cache(num_blocks)
        self._ranks.answers(self._patience_s)
        self._ranks.send("ready")
        self._ranks.watch()
        self._progress("warming up", None)
        for plan in worker.warm_up_plans():
            self.tell(plan)
            worker.execute(plan)
        return worker

    def tell(self, plan: StepPlan) -> None:
        """Let all other ranks execute the same plan."""
        if self.size > 1:
            self._ranks.send("step", pack_plan(plan))

    def close(self) -> None:
        """Safe twice."""
        self._ranks.close()
