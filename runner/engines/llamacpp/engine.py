"""LlamaCppEngine: llama.cpp as a StepEngine. Owns start and close, and hands requests on; the parts do the work.

    library -> model -> adapters -> context -> slots -> scheduler -> stepper           (made once, in this order)
    add(request) -> Sequence -> scheduler.waiting -> step(): schedule, decode, sample  (for each request)

Lives in a child process: an abort inside ggml must not take the launcher along.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from runner.engines.admission import HONOURED, check_request
from runner.engines.base import EngineSpec, StepOutput
from runner.engines.card_guide import CardGuide
from runner.engines.cpus import usable_cores
from runner.engines.guidance import CAPABILITIES as GUIDED
from runner.engines.host_memory import free_host_bytes
from runner.engines.llamacpp.context import Context, DecodeResult
from runner.engines.llamacpp.embeddings import Embedder, pooling_of
from runner.engines.llamacpp.library import Library, require_library
from runner.engines.llamacpp.lora import Adapters, parse_adapters
from runner.engines.llamacpp.memory import KvPlan, bytes_per_value, plan_kv
from runner.engines.llamacpp.model import Model
from runner.engines.llamacpp.offload import choose_gpu_layers, count_layers
from runner.engines.llamacpp.probe import extra_bufts_work
from runner.engines.llamacpp.sampler import Sampler
from runner.engines.llamacpp.scheduler import Scheduler
from runner.engines.llamacpp.sequence import Sequence
from runner.engines.llamacpp.settings import MAX_SEQUENCES, Extra, check_spec, resolve_cache_types
from runner.engines.llamacpp.slots import Slots
from runner.engines.llamacpp.stepper import Stepper
from runner.engines.seeds import Seeds
from runner.errors import EngineBusy, EngineStartFailed, UnsupportedField
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest

DEFAULT_MAX_RUNNING = 8
_MAX_SPARE_SLOTS = 8
"""Sequences beyond those that run, to remember prefixes of earlier requests."""


class LlamaCppEngine:
    """See StepEngine. `progress(phase, share)` may be replaced by a host that shows it."""

    def __init__(self) -> None:
        self.progress: Callable[[str, float | None], None] = lambda phase, share: None
        self._closers: list[Callable[[], None]] = []
        self._done: list[StepOutput] = []
        self._embedder: Embedder | None = None
        self._stepper: Stepper | None = None

    def start(self, spec: EngineSpec) -> EngineInfo:
        """Load library and model, make the KV cache, compute one token. Raises EngineStartFailed or UsageError."""
        extra = check_spec(spec)
        if spec.card.path is None:
            raise EngineStartFailed(f"{spec.card.name} has no weights on this machine; out=llamacpp needs a GGUF file")
        self._spec, self._options = spec, spec.options
        self._threads = spec.options.threads or usable_cores()
        self._library = Library(require_library(), verbose=bool(os.environ.get("LLMRUN_VERBOSE")))
        self._model = self._load_model(extra, spec.card.path)
        extra = resolve_cache_types(extra, is_all_f32=self._model.is_all_f32)
        self._seeds = Seeds(spec.options.seed)
        self._guide = CardGuide(spec.card, self._model.vocab_size)
        self._adapters = Adapters(self._library, self._model, parse_adapters(spec.options.adapters))
        self._max_running = spec.options.max_running or DEFAULT_MAX_RUNNING
        self._kv = self._plan_kv(extra)
        self.context_length = self._kv.context_length
        if self._model.is_causal:
            self._make_generator(extra)
        self._make_embedder(extra)
        return self._info(extra)

    def _load_model(self, extra: Extra, path: str) -> Model:
        use_extra_bufts = extra.use_extra_bufts
        if use_extra_bufts is None:
            use_extra_bufts = extra_bufts_work(self._library.path)
        self._free_before = free_host_bytes()
        self._devices = self._library.devices()
        self._offload = choose_gpu_layers(
            self._options.gpu_layers, path, self._devices, num_layers=lambda: count_layers(path)
        )
        self.progress("loading the model", 0.0)
        model = Model(
            self._library,
            path,
            extra,
            gpu_layers=self._offload.gpu_layers,
            main_gpu=self._options.base_gpu_id,
            use_extra_bufts=use_extra_bufts,
            on_progress=lambda share: self.progress("loading the model", share),
        )
        self._closers.append(model.close)
        return model

    def _plan_kv(self, extra: Extra) -> KvPlan:
        bytes_per_token = self._model.kv_bytes_per_token(
            bytes_per_value(extra.cache_type_k or "f16"), bytes_per_value(extra.cache_type_v or "f16")
        )
        if self._offload.is_full and extra.offload_kqv:
            free = sum(device.free_bytes for device in self._library.devices())
        else:
            free = self._free_before - self._model.size_bytes
        plan = plan_kv(
            asked=self._options.context_length,
            train_context=self._model.train_context,
            max_running=self._max_running,
            bytes_per_token=bytes_per_token,
            free_bytes=max(0, free),
            num_cells=extra.kv_cells,
        )
        if plan.note:
            sys.stderr.write(f"llamacpp: {plan.note}\n")
        return plan

    def _make_generator(self, extra: Extra) -> None:
        is_split = self._kv.is_split and not self._model.keeps_state
        spare = 0 if is_split or self._model.keeps_state else min(self._max_running, _MAX_SPARE_SLOTS)
        num_slots = min(self._max_running + spare, MAX_SEQUENCES)
        self.progress("making the KV cache", None)
        self._context = Context(
            self._library,
            self._model,
            extra,
            num_cells=self._kv.num_cells,
            num_sequences=num_slots,
            threads=self._threads,
            are_threads_fixed=self._options.threads is not None,
            is_split=is_split,
        )
        self._closers.append(self._context.close)
        self._warm_up()
        self._slots = Slots(
            self._context,
            num_slots=num_slots,
            num_cells=self._context.num_cells,
            reuse=extra.prefix_cache,
            can_split=not self._model.keeps_state,
            own_cells=is_split,
        )
        self._scheduler = Scheduler(
            self._slots,
            max_running=self._max_running,
            batch_size=self._context.batch.capacity,
            prefill_chunk=extra.prefill_chunk,
        )
        self._stepper = Stepper(self._context, self._slots, self._scheduler, self._adapters)

    def _warm_up(self) -> None:
        """One token: pages the weights in and finds a library that cannot compute before a request does."""
        self.progress("warming up", None)
        self._context.batch.clear()
        self._context.batch.add_token(0, 0, 0)
        if self._context.decode() is not DecodeResult.DONE:
            raise EngineStartFailed("llama.cpp could not compute a single token", log_tail=self._library.take_log())
        self._context.synchronize()
        self._context.forget_all()

    def _make_embedder(self, extra: Extra) -> None:
        pooling = pooling_of(self._model)
        if pooling is None or self._model.keeps_state or (self._model.has_encoder and self._model.is_causal):
            return
        self._embedder = Embedder(
            self._library,
            self._model,
            extra,
            context_length=self.context_length,
            threads=self._threads,
            pooling=pooling,
        )
        self._closers.append(self._embedder.close)

    def _info(self, extra: Extra) -> EngineInfo:
        capabilities: list[str] = []
        if self._stepper is not None:
            capabilities += [*HONOURED, "min_tokens", *GUIDED]
        if self._embedder is not None:
            capabilities.append("embed")
        if self._adapters.names:
            capabilities += ["adapter", *(f"adapter:{name}" for name in self._adapters.names)]
        return EngineInfo(
            name=self._spec.name,
            version=self._library.version,
            context_length=self.context_length,
            max_running=self._max_running,
            capabilities=tuple(capabilities),
            details={
                "model": self._model.description(),
                "device": self._offload.describe(self._devices),
                "threads": self._threads,
                "kv_cells": self._kv.num_cells,
                "kv_type": f"{extra.cache_type_k}/{extra.cache_type_v}",
                "library": str(self._library.path),
                **({"embed_tokens": self._embedder.max_tokens} if self._embedder is not None else {}),
                **({"note": self._kv.note} if self._kv.note else {}),
            },
        )

    def add(self, request: TokenRequest) -> None:
        """Queue a request. Raises RequestError for one that can never run, EngineBusy when the queue is full."""
        if self._stepper is None:
            raise UnsupportedField(f"{self._spec.card.name} only embeds; it cannot generate text", field="model")
        check_request(
            request,
            engine="llamacpp",
            vocab_size=self._model.vocab_size,
            context_length=self.context_length,
            adapters=self._adapters.names,
        )
        if request.max_tokens < 1:
            self._done.append(StepOutput(request.id, TokenDelta([], "length", cached_tokens=0)))
            return
        self._check_queue()
        sampler = Sampler(
            request,
            vocab_size=self._model.vocab_size,
            seed=self._seeds.of(request),
            matcher=self._guide.matcher(request),
        )
        self._scheduler.add(Sequence(request, sampler))

    def _check_queue(self) -> None:
        limit = self._options.max_queue
        num_open = len(self._scheduler.waiting) + len(self._scheduler.running)
        if limit is not None and num_open >= self._max_running + limit:
            raise EngineBusy(
                f"{self._max_running} requests run and {limit} wait, which is all that --max-queue allows; try again"
            )

    def cancel(self, request_id: str) -> None:
        """Forget a request; unknown ids are fine."""
        if self._stepper is not None:
            self._scheduler.remove(request_id)
        self._done = [output for output in self._done if output.id != request_id]

    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._done) or (
            self._stepper is not None and bool(self._scheduler.running or self._scheduler.waiting)
        )

    def step(self) -> list[StepOutput]:
        """One step for all running requests of one adapter."""
        done, self._done = self._done, []
        return done + self._stepper.step() if self._stepper is not None else done

    def embed(self, request: EmbedRequest) -> EmbedResult:
        """Blocking. Raises RequestError; UnsupportedField for a model that has no embeddings."""
        if self._embedder is None:
            raise UnsupportedField(f"{self._spec.card.name} gives no embeddings", field="model")
        return self._embedder.embed(request)

    def interrupt(self) -> None:
        """From any thread: a long step returns early; nothing that was computed is lost."""
        if self._stepper is not None:
            self._stepper.interrupt()

    def stats(self) -> dict[str, float]:
        """See Engine.stats; also how much of all prompts came from the prefix cache, and preemptions."""
        if self._stepper is None:
            return {"num_running": 0, "num_waiting": 0, "kv_used_tokens": 0, "kv_total_tokens": 0}
        return {
            "num_running": len(self._scheduler.running),
            "num_waiting": len(self._scheduler.waiting),
            "kv_used_tokens": self._slots.num_cells - self._slots.num_free_cells,
            "kv_total_tokens": self._slots.num_cells,
            "prefix_cache_queries": self._scheduler.num_prompt_tokens,
            "prefix_cache_hits": self._scheduler.num_cached_tokens,
            "num_preemptions": self._scheduler.num_preemptions,
            "num_threads": self._context.threads,
        }

    def close(self) -> None:
        """Free everything, last made first. Safe twice."""
        self._stepper = self._embedder = None
        while self._closers:
            self._closers.pop()()
