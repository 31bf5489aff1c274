"""llama.cpp's C structs and functions as ctypes sees them.

Owns: struct layouts, the layout probe, signatures. Works on the libllama.so that llama-cpp-python builds and on the
one extension module of xllamacpp, which export the same C functions. Does not know where a library lies (library.py)
or what a model is (model.py).

Struct layouts drift between llama.cpp versions, without a version number in the structs. So the defaults that the
library itself returns are read as raw bytes and compared with what llama.cpp's defaults are; a layout that does not
fit is refused, because calling with a wrong one corrupts memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import (
    c_bool,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from types import SimpleNamespace
from typing import Any

AbortCallback = ctypes.CFUNCTYPE(c_bool, c_void_p)
LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
ProgressCallback = ctypes.CFUNCTYPE(c_bool, c_float, c_void_p)

_SPARE = ("_spare", c_char * 128)
"""Room for fields that a newer library appends; structs go by hidden pointer, so a larger one is harmless."""


class UnknownLayout(Exception):
    """The library's structs are of no known version."""


class ModelParams(ctypes.Structure):
    """llama_model_params."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", ProgressCallback),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
        _SPARE,
    ]


_CONTEXT_HEAD: list[tuple[str, Any]] = [
    ("n_ctx", c_uint32),
    ("n_batch", c_uint32),
    ("n_ubatch", c_uint32),
    ("n_seq_max", c_uint32),
    ("n_rs_seq", c_uint32),
    ("n_outputs_max", c_uint32),
    ("n_outputs_max_per_seq", c_uint32),
    ("n_threads", c_int32),
    ("n_threads_batch", c_int32),
    ("ctx_type", c_int32),
    ("rope_scaling_type", c_int32),
    ("pooling_type", c_int32),
    ("attention_type", c_int32),
    ("flash_attn_type", c_int32),
    ("rope_freq_base", c_float),
    ("rope_freq_scale", c_float),
    ("yarn_ext_factor", c_float),
    ("yarn_attn_factor", c_float),
    ("yarn_beta_fast", c_float),
    ("yarn_beta_slow", c_float),
    ("yarn_orig_ctx", c_uint32),
    ("defrag_thold", c_float),
    ("cb_eval", c_void_p),
    ("cb_eval_user_data", c_void_p),
    ("type_k", c_int32),
    ("type_v", c_int32),
]
_CONTEXT_TAIL: list[tuple[str, Any]] = [
    ("abort_callback", AbortCallback),
    ("abort_callback_data", c_void_p),
    ("embeddings", c_bool),
    ("offload_kqv", c_bool),
    ("no_perf", c_bool),
    ("op_offload", c_bool),
    ("swa_full", c_bool),
    ("kv_unified", c_bool),
    ("samplers", c_void_p),
    ("n_samplers", c_size_t),
    ("ctx_other", c_void_p),
    _SPARE,
]


class ContextParams05(ctypes.Structure):
    """llama_context_params of llama.cpp 0.5 (llama-cpp-python 0.3.36)."""

    _fields_ = [*_CONTEXT_HEAD, *_CONTEXT_TAIL]


class ContextParams06(ctypes.Structure):
    """llama_context_params of llama.cpp 0.6 (xllamacpp 2026.10): a size in the middle."""

    _fields_ = [*_CONTEXT_HEAD, ("moe_cache_size", c_size_t), *_CONTEXT_TAIL]


class BatchStruct(ctypes.Structure):
    """llama_batch: pointers to arrays of `n_tokens` elements."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    ]


_DEFAULTS: dict[str, Any] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "samplers": None,
    "n_samplers": 0,
}
"""What llama_context_default_params returns in every version that we know."""

_MODEL_DEFAULTS: dict[str, Any] = {
    "devices": None,
    "n_gpu_layers": -1,
    "split_mode": 1,
    "main_gpu": 0,
    "kv_overrides": None,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
}


class _RawStruct(ctypes.Structure):
    _fields_ = [("bytes", c_char * 512)]


def _raw_defaults(library: ctypes.CDLL, name: str) -> bytes:
    function = getattr(library, name)
    function.restype, function.argtypes = _RawStruct, []
    result = function()
    return ctypes.string_at(ctypes.addressof(result), ctypes.sizeof(result))


def _fits(layout: type[ctypes.Structure], raw: bytes, expected: dict[str, Any]) -> bool:
    params = layout.from_buffer_copy(raw)
    return all(getattr(params, name) == value for name, value in expected.items())


def probe_context_layout(library: ctypes.CDLL) -> type[ctypes.Structure]:
    """The layout of llama_context_params in this library. Raises UnknownLayout."""
    if not _fits(ModelParams, _raw_defaults(library, "llama_model_default_params"), _MODEL_DEFAULTS):
        raise UnknownLayout("llama_model_params has an unknown layout")
    raw = _raw_defaults(library, "llama_context_default_params")
    for layout in (ContextParams05, ContextParams06):
        if _fits(layout, raw, _DEFAULTS):
            return layout
    raise UnknownLayout("llama_context_params has an unknown layout")


def _signatures(context_params: type[ctypes.Structure]) -> dict[str, tuple[Any, list[Any]]]:
    """name -> (result, arguments), all of which a library must export. llama.h is the source."""
    pointer, integer, text = c_void_p, c_int32, c_char_p
    return {
        "llama_log_set": (None, [LogCallback, pointer]),
        "llama_print_system_info": (text, []),
        "llama_model_default_params": (ModelParams, []),
        "llama_context_default_params": (context_params, []),
        "llama_model_load_from_file": (pointer, [text, ModelParams]),
        "llama_model_free": (None, [pointer]),
        "llama_init_from_model": (pointer, [pointer, context_params]),
        "llama_free": (None, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (integer, [pointer]),
        "llama_model_n_ctx_train": (integer, [pointer]),
        "llama_model_n_embd_out": (integer, [pointer]),
        "llama_model_n_layer": (integer, [pointer]),
        "llama_model_n_head": (integer, [pointer]),
        "llama_model_n_head_kv": (integer, [pointer]),
        "llama_model_n_embd": (integer, [pointer]),
        "llama_model_n_params": (c_uint64, [pointer]),
        "llama_model_size": (c_uint64, [pointer]),
        "llama_model_desc": (integer, [pointer, text, c_size_t]),
        "llama_model_meta_val_str": (integer, [pointer, text, text, c_size_t]),
        "llama_model_is_recurrent": (c_bool, [pointer]),
        "llama_model_is_hybrid": (c_bool, [pointer]),
        "llama_model_has_encoder": (c_bool, [pointer]),
        "llama_model_has_decoder": (c_bool, [pointer]),
        "llama_n_ctx": (c_uint32, [pointer]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_decode": (integer, [pointer, BatchStruct]),
        "llama_synchronize": (None, [pointer]),
        "llama_set_n_threads": (None, [pointer, integer, integer]),
        "llama_get_logits": (pointer, [pointer]),
        "llama_get_embeddings_ith": (pointer, [pointer, integer]),
        "llama_set_abort_callback": (None, [pointer, AbortCallback, pointer]),
        "llama_memory_clear": (None, [pointer, c_bool]),
        "llama_memory_seq_rm": (c_bool, [pointer, integer, integer, integer]),
        "llama_memory_seq_cp": (None, [pointer, integer, integer, integer, integer]),
        "llama_memory_seq_pos_max": (integer, [pointer, integer]),
        "llama_adapter_lora_init": (pointer, [pointer, text]),
        "llama_set_adapters_lora": (integer, [pointer, pointer, c_size_t, pointer]),
    }


_BACKEND_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_dev_count": (c_size_t, []),
    "ggml_backend_dev_get": (c_void_p, [c_size_t]),
    "ggml_backend_dev_type": (c_int, [c_void_p]),
    "ggml_backend_dev_description": (c_char_p, [c_void_p]),
    "ggml_backend_dev_memory": (None, [c_void_p, ctypes.POINTER(c_size_t), ctypes.POINTER(c_size_t)]),
}
"""In libggml*.so beside libllama.so, or in the same file."""


def bind(library: ctypes.CDLL, companions: list[ctypes.CDLL]) -> SimpleNamespace:
    """All functions by their C name. Raises UnknownLayout, also when one is missing."""
    layout = probe_context_layout(library)
    functions = SimpleNamespace(ContextParams=layout)
    for name, (result, arguments) in _signatures(layout).items():
        setattr(functions, name, _typed(_symbol([library], name), result, arguments))
    for name, (result, arguments) in _BACKEND_SIGNATURES.items():
        setattr(functions, name, _typed(_symbol([library, *companions], name), result, arguments))
    return functions


def _symbol(libraries: list[ctypes.CDLL], name: str) -> Any:
    for library in libraries:
        function = getattr(library, name, None)
        if function is not None:
            return function
    raise UnknownLayout(f"the function {name} is missing")


def _typed(function: Any, result: Any, arguments: list[Any]) -> Callable[..., Any]:
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]
