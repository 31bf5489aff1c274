"""NativeEngine: our engine as a StepEngine. Owns start and close and the loop; the parts do the work.

    settings -> ranks -> worker (weights, KV cache) -> core, sampler                      (made once, in this order)
    add(request) -> Sequence -> step(): schedule -> plan -> execute -> sample -> commit     (for each request)

Lives in a child process under a Python with torch. On node 0 it is rank 0; another node only follows (follower.py).
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable

import torch

from runner import __version__
from runner.engines.admission import HONOURED, check_request
from runner.engines.base import EngineSpec, StepOutput
from runner.engines.block_log import BlockLog
from runner.engines.card_guide import CardGuide
from runner.engines.failures import describe
from runner.engines.guidance import CAPABILITIES as GUIDED
from runner.engines.native.core import Core, CoreConfig, Scheduled
from runner.engines.native.sampler import Sampler, plain_sample
from runner.engines.native.sampling_state import make_state
from runner.engines.native.settings import read_settings
from runner.engines.native.team import Team
from runner.engines.native.worker import Worker
from runner.engines.seeds import Seeds
from runner.errors import EngineFailed, EngineStartFailed, UnsupportedField
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest

_CAPABILITIES = (*HONOURED, "beam_width", "length_penalty", "min_tokens", *GUIDED)


class NativeEngine:
    """See StepEngine. `progress(phase, share)` may be replaced by a host that shows it."""

    def __init__(self) -> None:
        self.progress: Callable[[str, float | None], None] = lambda phase, share: None
        self._done: list[StepOutput] = []
        self._worker: Worker | None = None

    def start(self, spec: EngineSpec) -> EngineInfo:
        """Load the model, make the KV cache, compute one token. Raises EngineStartFailed, UsageError, CardError."""
        self._spec = spec
        self._settings = read_settings(spec)
        self._team = Team(spec, self._settings, self.progress)
        try:
            self._worker = self._team.start()
        except torch.OutOfMemoryError as error:
            raise EngineStartFailed(out_of_memory(error, "loading the model")) from error
        self._make_core(self._worker)
        gc.collect()
        gc.freeze()  # what is loaded stays: full collections need not walk it between steps
        return self._info(self._worker)

    def _make_core(self, worker: Worker) -> None:
        config = CoreConfig(
            num_blocks=worker.num_blocks,
            block_size=worker.block_size,
            max_running=self._settings.max_running,
            max_batched_tokens=worker.max_batched_tokens,
            context_length=worker.context_length,
            prefix_cache=self._settings.prefix_cache,
            max_queue=self._spec.options.max_queue,
            vocab_size=worker.vocab_size,
        )
        self._core = Core(config)
        self._sampler = Sampler(worker.vocab_size, worker.device)
        self._seeds = Seeds(self._spec.options.seed)
        self._guide = CardGuide(self._spec.card, worker.vocab_size)

    def _info(self, worker: Worker) -> EngineInfo:
        return EngineInfo(
            name=self._spec.name,
            version=f"{__version__} (torch {torch.__version__})",
            context_length=worker.context_length,
            max_running=self._settings.max_running,
            capabilities=_CAPABILITIES,
            details=worker.describe(),
        )

    @property
    def block_log(self) -> BlockLog:
        """See StepHost."""
        return self._core.block_log

    def add(self, request: TokenRequest) -> None:
        """Queue a request. Raises RequestError for one that can never run, EngineBusy when the queue is full."""
        assert self._worker is not None
        check_request(
            request,
            engine=self._spec.name,
            capabilities=_CAPABILITIES,
            vocab_size=self._worker.vocab_size,
            context_length=self._worker.context_length,
        )
        if request.max_tokens < 1:
            self._done.append(StepOutput(request.id, TokenDelta([], "length", cached_tokens=0)))
            return
        self._core.add(request, make_state(request, seed=self._seeds.of(request), matcher=self._guide.matcher(request)))

    def cancel(self, request_id: str) -> None:
        """Forget a request; unknown ids are fine."""
        self._core.cancel(request_id)
        self._done = [output for output in self._done if output.id != request_id]

    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._done) or self._core.has_work()

    def step(self) -> list[StepOutput]:
        """One step for all requests that run, or several where these cost less together (burst.py).

        What goes wrong ends its own requests; the engine serves on.
        """
        done, self._done = self._done, []
        scheduled = self._core.schedule()
        if scheduled is None:
            return done
        try:
            return done + self._compute(scheduled)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            return done + self._fail(scheduled, out_of_memory(error, "a step"))
        except Exception as error:
            traceback.print_exception(error)
            return done + self._fail(scheduled, f"the engine failed in a step: {describe(error)}")

    def _compute(self, scheduled: Scheduled) -> list[StepOutput]:
        assert self._worker is not None
        burst = self._core.burst(scheduled) if self._worker.can_burst else None
        if burst is not None:
            steps, best = self._worker.burst(scheduled.plan, burst)
            runs = [list(run) for run in zip(*steps[:-1], strict=True)]
            return self._core.commit(scheduled, list(map(plain_sample, steps[-1], best)), runs)
        self._team.tell(scheduled.plan)
        logits = self._worker.execute(scheduled.plan)
        samples = self._sampler.sample(logits, scheduled.sampled) if logits is not None else []
        return self._core.commit(scheduled, samples)

    def _fail(self, scheduled: Scheduled, message: str) -> list[StepOutput]:
        """Raises what ends the process where the device or another rank cannot go on."""
        assert self._worker is not None
        if self._team.size > 1:
            raise EngineFailed(f"{message}; with several ranks a failed step ends the engine")
        self._worker.check_device()
        return self._core.fail(scheduled, message)

    def embed(self, request: EmbedRequest) -> EmbedResult:
        """Not yet."""
        raise UnsupportedField("out=native gives no embeddings; out=llamacpp does, with a GGUF file", field="model")

    def interrupt(self) -> None:
        """Steps are short: a prompt is computed in chunks."""

    def stats(self) -> dict[str, float]:
        """See Engine.stats; also how much of all prompts came from the prefix cache, and preemptions."""
        return self._core.stats() if self._worker is not None else {}

    def close(self) -> None:
        """Free everything. Safe twice."""
        if self._worker is not None:
            self._worker = None
            self._team.close()


def out_of_memory(error: BaseException, when: str) -> str:
    """What to change when the GPU's memory does not suffice."""
    first = str(error).splitlines()[0] if str(error) else "out of memory"
    return (
        f"out of memory in {when}: {first}; lower --gpu-memory-utilization (more room for steps), --max-batched-tokens "
        "or --max-running, shorten --context-length, or take --quantize int8 or int4, or a smaller model"
    )
