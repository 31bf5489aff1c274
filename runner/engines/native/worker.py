"""Worker: one rank's half of the engine that computes. Loads its shard, keeps its KV cache, executes plans.

Knows torch and models; no requests, no scheduling, no sampling. Every rank runs the same plans in the same order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_cards.card import ModelCard
from runner.engines.native import machine
from runner.engines.native.burst import Burst
from runner.engines.native.graphs import DecodeGraphs
from runner.engines.native.group import join_group
from runner.engines.native.kernels.cpu_decoder import CpuDecoder, accelerate
from runner.engines.native.kernels.ops import ops, use_ops
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.cache import KVCache, bytes_per_block
from runner.engines.native.model import build_model, read_config
from runner.engines.native.plan import StepPlan
from runner.engines.native.settings import BLOCK_SIZE, MAX_BATCHED_TOKENS, Settings
from runner.errors import EngineStartFailed

_LEAST_CONTEXT = 128
_MOST_STRETCH = 32
"""A longer context than this many times the trained one is a typing mistake, and its rotary tables fill the memory."""
_BACKENDS = {"cpu": "cpu", "cuda": "triton"}

Progress = Callable[[str, float | None], None]


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank is told before it loads; the same for all ranks but `rank`."""

    settings: Settings
    rank: int = 0
    size: int = 1
    per_node: int = 1
    base_gpu_id: int = 0
    context_length: int = 0
    store: tuple[str, int] | None = None
    """Where rank 0 has torch.distributed's store."""


class Worker:
    """One rank. Call load, measure, make_cache once each, in this order; then execute."""

    def __init__(
        self, config: WorkerConfig, card: ModelCard, progress: Progress | None = None, store: Any = None
    ) -> None:
        self._config = config
        self._store = store
        self._card = card
        self._progress: Progress = progress or (lambda phase, share: None)
        self.settings = config.settings
        self.threads = machine.use_threads(config.settings)
        self.device = machine.choose_device(config.settings, config.base_gpu_id, config.rank % config.per_node)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # Triton and CUDA graphs take the current device
        self.block_size = config.settings.block_size or BLOCK_SIZE[self.device.type]
        self.max_batched_tokens = config.settings.max_batched_tokens or MAX_BATCHED_TOKENS[self.device.type]
        self.num_blocks = 0
        self._graphs: DecodeGraphs | None = None
        self.model: Any

    def load(self) -> None:
        """Build the model and read its weights. Raises EngineStartFailed, ModelFileError."""
        self._progress("reading the configuration", None)
        model_config = read_config(self._card)
        self.dtype = machine.choose_dtype(self.settings, model_config, self.device)
        self.kv_dtype = machine.choose_kv_dtype(self.settings, self.dtype)
        self.context_length = self._choose_context(model_config)
        self.model = build_model(
            self._card,
            model_config,
            parallel=join_group(self._config.rank, self._config.size, self._config.store, self.device, self._store),
            dtype=self.dtype,
            device=self.device,
            settings=self.settings,
            context_length=self.context_length,
            progress=self._progress,
        )
        self.vocab_size = self.model.spec.vocab_size
        self._make_fast()

    def _make_fast(self) -> None:
        """Kernels for this device in place of torch's ops; on a CPU, where that can be, one call for a whole step."""
        self.backend = self.settings.backend if self.settings.backend != "auto" else _BACKENDS[self.device.type]
        if self.backend == "cpu":
            self.model = accelerate(self.model)
        if not isinstance(self.model, CpuDecoder):
            use_ops(self.model, ops(self.backend))

    def _choose_context(self, model_config: dict[str, Any]) -> int:
        """What is asked, else what the model was trained for."""
        trained = self._card.context_length or int(model_config.get("max_position_embeddings") or 2048)
        asked = self._config.context_length
        if asked > _MOST_STRETCH * trained:
            raise EngineStartFailed(
                f"--context-length {asked:,} is more than {_MOST_STRETCH} times the {trained:,} tokens that the model "
                f"was trained for; at most {_MOST_STRETCH * trained:,} are allowed"
            )
        if asked > trained and self._config.rank == 0:
            sys.stderr.write(f"native: the context is {asked:,}; the model was trained for {trained:,} tokens\n")
        return asked or trained

    def measure(self) -> int:
        """How many blocks of KV cache fit on this rank, after one step of the largest size."""
        peak = self._profile() if self.device.type == "cuda" else 0
        budget = machine.kv_budget(self.settings, self.device, peak)
        self.block_bytes = self._block_bytes()
        return machine.num_blocks(
            self.settings, self.device, budget, self.block_size, self.block_bytes, self.context_length
        )

    def _block_bytes(self) -> int:
        spec, attention = self.model.spec, next(iter(self.model.attentions()))
        return bytes_per_block(
            spec.num_layers, attention.num_kv_heads, attention.head_dim, self.block_size, self.kv_dtype
        )

    def _profile(self) -> int:
        """Bytes that weights and the largest step take at most (CUDA)."""
        torch.cuda.reset_peak_memory_stats(self.device)
        with torch.inference_mode():
            batch = Batch.from_plan(dummy_plan(self.max_batched_tokens, self.context_length), self.device)
            self.model.logits(self.model(batch)[: self.settings.max_running])
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_reserved(self.device)
        torch.cuda.empty_cache()
        return int(peak)

    def make_cache(self, num_blocks: int) -> None:
        """Take the memory for K and V. Raises EngineStartFailed where one request of the context does not fit."""
        self.num_blocks = num_blocks
        tokens = num_blocks * self.block_size
        if tokens < self.context_length:
            self.context_length = self._shorten(tokens)
        attentions = list(self.model.attentions())
        first = attentions[0]
        self.cache = KVCache(
            len(attentions), num_blocks, self.block_size, first.num_kv_heads, first.head_dim, self.kv_dtype, self.device
        )
        for attention, layer in zip(attentions, self.cache.layers, strict=True):
            attention.cache = layer
        if self.backend == "triton" and self.settings.cuda_graphs and self._config.size == 1 and self.model.can_capture:
            self._graphs = DecodeGraphs(
                self.model,
                self.device,
                max_batch=self.settings.max_running,
                max_context=self.context_length,
                block_size=self.block_size,
            )

    def _shorten(self, tokens: int) -> int:
        if self._config.context_length or tokens < _LEAST_CONTEXT:
            raise EngineStartFailed(
                f"the KV cache has room for {tokens:,} tokens, the context is {self.context_length:,}: start with "
                f"--context-length {max(tokens, 1)}, --kv-cache-dtype int8, or more memory"
            )
        sys.stderr.write(f"native: the KV cache has room for {tokens:,} tokens: the context is {tokens:,}\n")
        return tokens

    def warm_up_plans(self) -> list[StepPlan]:
        """Steps that every rank executes once before requests come: they page weights in and compile kernels.

        All write into block 0, which nobody owns yet.
        """
        return [dummy_plan(min(8, self.block_size, self.context_length), self.context_length), dummy_plan(1, 1)]

    def execute(self, plan: StepPlan) -> Tensor | NDArray[np.float32] | None:
        """Logits [samples, vocab] float32 of the rows that are sampled; None where the step samples none.

        They are valid until the next step.
        """
        if len(plan.copies):
            self.cache.copy_blocks(plan.copies)
        if isinstance(self.model, CpuDecoder):
            return self.model.step(plan)
        return self._run(plan)

    @property
    def can_burst(self) -> bool:
        """Whether `burst` works: the model is one that makes several steps in a call."""
        return isinstance(self.model, CpuDecoder)

    def burst(self, plan: StepPlan, burst: Burst) -> tuple[list[list[int]], list[float]]:
        """Greedy steps from this one on: tokens [steps][sequences], and the best logits of the first."""
        assert isinstance(self.model, CpuDecoder)
        return self.model.burst(plan, burst)

    @torch.inference_mode()
    def _run(self, plan: StepPlan) -> Tensor | None:
        if self._graphs is not None and self._graphs.fits(plan):
            hidden = self._graphs.run(plan)
        else:
            hidden = self.model(Batch.from_plan(plan, self.device))
        if not len(plan.sample_rows):
            return None
        rows = torch.from_numpy(plan.sample_rows.astype(np.int64)).to(self.device, non_blocking=True)
        logits: Tensor = self.model.logits(hidden[rows])
        return logits

    def check_device(self) -> None:
        """Raises where the device cannot go on after an error (a fault inside a CUDA kernel is final)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def describe(self) -> dict[str, Any]:
        """For people: what went where."""
        weights = sum(parameter.nbytes for parameter in self.model.parameters())
        cache = self.num_blocks * self.block_bytes
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"{self.threads} CPU threads"
        return {
            "device": name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "memory": f"weights {weights / 2**20:,.0f} MiB, KV cache {cache / 2**20:,.0f} MiB",
            "kv_cache": f"{self.num_blocks * self.block_size:,} tokens, {str(self.kv_dtype).removeprefix('torch.')}",
            "block_size": self.block_size,
            **({"ranks": self._config.size} if self._config.size > 1 else {}),
            **({"quantize": self.settings.quantize} if self.settings.quantize else {}),
        }


def dummy_plan(num_tokens: int, context_length: int) -> StepPlan:
    """Prompts of up to `context_length` zeros, `num_tokens` in all, without blocks: as many sequences as it takes."""
    lengths = [min(context_length, num_tokens - start) for start in range(0, num_tokens, context_length)]
    return StepPlan.of_prompts([np.zeros(length, np.int32) for length in lengths])
