"""Context: a llama_context with its batch, KV cache operations, logits and abort flag.

Owns the C pointer and the mapping of return codes. Every method but `request_abort` belongs to the engine thread: the
thread that loads the model must be the one that decodes (libgomp throttles a second OpenMP thread 3 to 4 times).
"""

from __future__ import annotations

import ctypes
import enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.engines.llamacpp.batch import Batch
from runner.engines.llamacpp.binding import AbortCallback
from runner.engines.llamacpp.library import Library
from runner.engines.llamacpp.model import Model
from runner.engines.llamacpp.settings import CACHE_TYPES, Extra
from runner.engines.llamacpp.threads import ThreadGovernor
from runner.errors import EngineFailed, EngineStartFailed

Floats = NDArray[np.float32]
_MAX_VIEWS = 256


class DecodeResult(enum.Enum):
    """How a decode ended. FULL left everything as it was; ABORTED may have kept some of the batch's tokens."""

    DONE = 0
    FULL = 1
    ABORTED = 2


class Context:
    """One llama_context; `num_sequences` sequences share `num_cells` cells of KV cache, or split them evenly."""

    def __init__(
        self,
        library: Library,
        model: Model,
        extra: Extra,
        *,
        num_cells: int,
        num_sequences: int,
        threads: int,
        are_threads_fixed: bool = False,
        is_split: bool = False,
        for_embeddings: bool = False,
        batch_size: int | None = None,
    ) -> None:
        self._c: Any = library.c
        self._vocab_size = model.vocab_size
        self._embedding_size = model.embedding_size
        self._views: dict[tuple[int, int], Floats] = {}
        self.num_sequences = num_sequences
        self._is_split = is_split
        batch_size = batch_size or max(extra.n_batch, num_sequences)
        params = self._params(extra, model, num_cells, num_sequences, threads, batch_size)
        if for_embeddings:
            params.embeddings, params.pooling_type, params.n_outputs_max = True, 0, 0
            params.n_ubatch = batch_size
        library.take_log()
        self.pointer: int | None = self._c.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            log = library.take_log()
            reason = log.splitlines()[-1] if log else "it gives no reason"
            raise EngineStartFailed(
                f"llama.cpp cannot make a KV cache of {num_cells:,} tokens: {reason}",
                log_tail=log,
                hint="start with a smaller --context-length",
            )
        self.batch = Batch(batch_size)
        self.num_cells: int = self._c.llama_n_ctx(self.pointer)
        self._memory: int | None = self._c.llama_get_memory(self.pointer)
        self._threads = ThreadGovernor(threads, self._set_threads, is_fixed=are_threads_fixed)
        self._threads_batch = extra.threads_batch
        self._install_abort_flag()

    def _set_threads(self, threads: int) -> None:
        self._c.llama_set_n_threads(self.pointer, threads, self._threads_batch or threads)

    @property
    def threads(self) -> int:
        """Threads of the next decode."""
        return self._threads.threads

    def _params(
        self, extra: Extra, model: Model, num_cells: int, num_sequences: int, threads: int, batch_size: int
    ) -> Any:
        params = self._c.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_cells, num_sequences
        params.n_batch, params.n_ubatch = batch_size, min(extra.n_ubatch, batch_size)
        params.n_outputs_max = num_sequences  # else buffers for n_batch rows of logits are reserved
        params.n_threads, params.n_threads_batch = threads, extra.threads_batch or threads
        # Unified, every token's attention runs over the cells of all sequences and masks those of others; split, a
        # partial seq_cp aborts the process and a batch that mixes prompts and answers is computed in parts.
        params.kv_unified = not self._is_split
        scores_bytes = 4 * num_cells * params.n_ubatch * model.num_heads
        params.flash_attn_type = extra.flash_attn_type(scores_bytes, is_quantized=model.is_quantized)
        params.type_k, params.type_v = (
            CACHE_TYPES[extra.cache_type_k or "f16"],
            CACHE_TYPES[extra.cache_type_v or "f16"],
        )
        params.offload_kqv, params.op_offload, params.swa_full = extra.offload_kqv, extra.op_offload, extra.swa_full
        params.rope_freq_base, params.rope_freq_scale = extra.rope_freq_base or 0.0, extra.rope_freq_scale or 0.0
        return params

    def _install_abort_flag(self) -> None:
        """libc's strlen as the callback: "" is go on, anything else is abort. No GIL, where Python's would stall.

        ggml calls it once for each graph node, hundreds of times a step.
        """
        self._abort_flag = ctypes.create_string_buffer(2)
        self._abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, AbortCallback)
        self._c.llama_set_abort_callback(self.pointer, self._abort_callback, ctypes.addressof(self._abort_flag))

    def request_abort(self) -> None:
        """From any thread: a running decode returns ABORTED soon; the flag stays up until `clear_abort`."""
        self._abort_flag[0] = b"x"

    def clear_abort(self) -> None:
        """Take the flag down."""
        self._abort_flag[0] = b"\0"

    def decode(self) -> DecodeResult:
        """Compute the batch. Raises EngineFailed when llama.cpp refuses it, which is our bug or a broken device."""
        self._threads.start_step()
        code = self._c.llama_decode(self.pointer, self.batch.ready())
        self._threads.end_step()
        if code not in (0, 1, 2):
            raise EngineFailed(f"llama.cpp failed at a step (llama_decode returned {code})")
        return DecodeResult(code)

    def logits(self) -> Floats:
        """[outputs of the last batch, vocabulary], in batch order; a view until the next decode."""
        return self._view(self._c.llama_get_logits(self.pointer), self.batch.num_outputs, self._vocab_size)

    def embeddings(self) -> Floats:
        """[outputs of the last batch, embedding size], in batch order; a view until the next decode."""
        first = self._c.llama_get_embeddings_ith(self.pointer, 0)
        return self._view(first, self.batch.num_outputs, self._embedding_size)

    def _view(self, address: int, rows: int, columns: int) -> Floats:
        """llama.cpp's buffers only grow and rarely move, so the same few views serve all steps."""
        view = self._views.get((address, rows))
        if view is None:
            if len(self._views) > _MAX_VIEWS:
                self._views.clear()
            memory: Any = (ctypes.c_float * (rows * columns)).from_address(address)
            view = self._views[address, rows] = np.frombuffer(memory, np.float32).reshape(rows, columns)
        return view

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        self._c.llama_synchronize(self.pointer)

    @property
    def has_memory(self) -> bool:
        """Whether there is a KV cache; encoder-only models have none."""
        return self._memory is not None

    def forget(self, sequence: int, keep: int = 0) -> bool:
        """Drop what `sequence` holds from position `keep` on; False when the model cannot take back a part."""
        return bool(self._c.llama_memory_seq_rm(self._memory, sequence, keep, -1))

    def forget_all(self) -> None:
        """Empty the KV cache."""
        if self._memory is not None:
            self._c.llama_memory_clear(self._memory, False)

    def share_prefix(self, source: int, target: int, length: int) -> None:
        """(The empty) `target` also holds the first `length` tokens of `source`. Nothing is copied, unless split."""
        if not self._is_split:
            self._c.llama_memory_seq_cp(self._memory, source, target, 0, length)
            return
        self._c.llama_memory_seq_cp(self._memory, source, target, -1, -1)  # the buffers, at the next decode
        self._c.llama_memory_seq_rm(self._memory, target, length, -1)

    def length(self, sequence: int) -> int:
        """Positions that `sequence` holds."""
        return int(self._c.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def set_adapter(self, adapter: int | None) -> None:
        """Use one LoRA adapter (its C pointer) from the next decode on, or none. Raises EngineFailed."""
        adapters = (ctypes.c_void_p * 1)(adapter)
        scales = (ctypes.c_float * 1)(1.0)
        if self._c.llama_set_adapters_lora(self.pointer, adapters, 0 if adapter is None else 1, scales):
            raise EngineFailed("llama.cpp refused to switch the LoRA adapter")

    def close(self) -> None:
        """Free it. Safe twice."""
        if self.pointer:
            self._c.llama_free(self.pointer)
            self.pointer = None
