"""Model: a loaded GGUF file. Owns llama_model and what can be asked of it; contexts are context.py's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from runner.engines.llamacpp.binding import ProgressCallback
from runner.engines.llamacpp.library import Library
from runner.engines.llamacpp.settings import Extra
from runner.errors import EngineStartFailed

_EXACT_FILE_TYPES = ("0", "1", "32")
"""llama_ftype: all f32, mostly f16, mostly bf16."""


class Model:
    """Weights in memory, until `close`. Raises EngineStartFailed with llama.cpp's own last lines."""

    def __init__(
        self,
        library: Library,
        path: str,
        extra: Extra,
        *,
        gpu_layers: int,
        main_gpu: int,
        use_extra_bufts: bool,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        self._c: Any = library.c
        params = self._c.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.main_gpu = main_gpu
        params.load_mode = extra.load_mode
        params.check_tensors = extra.check_tensors
        params.use_extra_bufts = use_extra_bufts
        report = _progress_callback(on_progress)  # must live until the load is over
        params.progress_callback = report
        library.take_log()
        self.pointer: int | None = self._c.llama_model_load_from_file(path.encode(), params)
        if not self.pointer:
            log = library.take_log()
            raise EngineStartFailed(f"llama.cpp cannot load {path}: {load_fault(log)}", log_tail=log)
        self.vocab_size: int = self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self.pointer))
        self.train_context: int = self._c.llama_model_n_ctx_train(self.pointer)
        self.num_heads: int = self._c.llama_model_n_head(self.pointer)
        self.num_layers: int = self._c.llama_model_n_layer(self.pointer)
        self.embedding_size: int = self._c.llama_model_n_embd_out(self.pointer)
        self.size_bytes: int = self._c.llama_model_size(self.pointer)
        self.num_parameters: int = self._c.llama_model_n_params(self.pointer)
        self.architecture = self.metadata("general.architecture") or ""
        file_type = self.metadata("general.file_type")
        self.is_all_f32 = file_type == "0"
        self.is_quantized = file_type not in _EXACT_FILE_TYPES
        self.is_causal = self.metadata(f"{self.architecture}.attention.causal") != "false"
        """Encoder-only models (BERT) are not: they embed and cannot generate."""
        self.has_encoder: bool = self._c.llama_model_has_encoder(self.pointer)
        self.keeps_state: bool = self._c.llama_model_is_recurrent(self.pointer) or self._c.llama_model_is_hybrid(
            self.pointer
        )
        """Recurrent state instead of (only) a KV cache: no part of it can be taken back or shared."""

    def metadata(self, key: str) -> str | None:
        """A metadata value as text, or None."""
        buffer = ctypes.create_string_buffer(256)
        length = self._c.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if length >= 0 else None

    def description(self) -> str:
        """Such as `llama 7B Q8_0`."""
        buffer = ctypes.create_string_buffer(256)
        self._c.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def kv_bytes_per_token(self, bytes_per_value_k: float, bytes_per_value_v: float) -> int:
        """KV cache of one token over all layers. An estimate for models with unequal layers."""
        kv_heads = self._c.llama_model_n_head_kv(self.pointer)
        head_size = self._c.llama_model_n_embd(self.pointer) // max(1, self.num_heads)
        key_size = self._number("attention.key_length", head_size)
        value_size = self._number("attention.value_length", head_size)
        per_layer = kv_heads * (key_size * bytes_per_value_k + value_size * bytes_per_value_v)
        return max(1, int(self.num_layers * per_layer))

    def _number(self, key: str, otherwise: int) -> int:
        text = self.metadata(f"{self.architecture}.{key}")
        return int(text) if text and text.isdigit() else otherwise

    def close(self) -> None:
        """Free the weights; contexts and adapters must be gone. Safe twice."""
        if self.pointer:
            self._c.llama_model_free(self.pointer)
            self.pointer = None


def _progress_callback(on_progress: Callable[[float], None] | None) -> Any:
    def report(share: float, _data: object) -> bool:
        if on_progress is not None:
            on_progress(share)
        return True

    return ProgressCallback(report)


def load_fault(log: str) -> str:
    """The line of llama.cpp's log that says most about a failed load."""
    lines = [line for line in log.splitlines() if "error loading" in line] or log.splitlines()[:1]
    return lines[0].split("error loading model: ")[-1] if lines else "it gives no reason"
