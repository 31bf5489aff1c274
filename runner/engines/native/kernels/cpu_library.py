"""Library: the C++ kernels as ctypes sees them, and the threads that they share. Mirrors kernels/cpu/api.cpp.

Knows structures and functions, no tensors. A call gives up Python's lock while it computes.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p

from runner.engines.native.kernels.cpu_build import BuildFailed, library_path

_SPIN_US = 300
"""How long an idle thread stays awake for the next call: about the Python between two short steps. One that sleeps is
80 us late (a demo-size model, one sampled stream, through the engine process: 479 us a token with 50, 392 with 300;
no difference with more streams)."""

F32, BF16, F16, I8, FP8 = range(5)
BLOCKS = ("sequential", "parallel", "parallel_two_norms", "post_norm", "sandwich")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu")


class Weight(ctypes.Structure):
    """gemm.h: a packed [n, k] matrix; quantised where `bits` is not 0."""

    _fields_ = [("data", c_void_p), ("bias", c_void_p), ("n", c_int32), ("k", c_int32), ("type", c_int32),
                ("is_gated", c_int32), ("scales", c_void_p), ("bits", c_int32), ("group", c_int32)]  # fmt: skip


class Cache(ctypes.Structure):
    """rows.h: K and V of one layer."""

    _fields_ = [("k", c_void_p), ("v", c_void_p), ("k_scale", c_void_p), ("v_scale", c_void_p), ("type", c_int32),
                ("block_size", c_int32), ("kv_heads", c_int32), ("dim", c_int32)]  # fmt: skip


class Rope(ctypes.Structure):
    """rows.h: what happens to q and k before attention."""

    _fields_ = [("q_norm", c_void_p), ("k_norm", c_void_p), ("norm_eps", c_float), ("rope_dim", c_int32),
                ("is_interleaved", c_int32)]  # fmt: skip


class Attend(ctypes.Structure):
    """attention.h: one call of attention."""

    _fields_ = [("q", c_void_p), ("out", c_void_p), ("q_stride", c_int64), ("out_stride", c_int64),
                ("slopes", c_void_p), ("scale", c_float), ("softcap", c_float), ("q_type", c_int32),
                ("out_type", c_int32), ("heads", c_int32), ("window", c_int32)]  # fmt: skip


class Sequences(ctypes.Structure):
    """attention.h: where each sequence's tokens and blocks are."""

    _fields_ = [("query_starts", c_void_p), ("context_lens", c_void_p), ("block_tables", c_void_p),
                ("count", c_int32), ("width", c_int32)]  # fmt: skip


class Norm(ctypes.Structure):
    """decoder.h: weight null for none."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class Layer(ctypes.Structure):
    """decoder.h."""

    _fields_ = [("qkv", Weight), ("out", Weight), ("up", Weight), ("down", Weight), ("norm1", Norm), ("norm2", Norm),
                ("norm1_post", Norm), ("norm2_post", Norm), ("cache", Cache), ("rope", Rope),
                ("rope_table", c_void_p), ("wide_q", c_void_p), ("wide_k", c_void_p), ("window", c_int32),
                ("padding", c_int32)]  # fmt: skip


class Model(ctypes.Structure):
    """decoder.h."""

    _fields_ = [("layers", POINTER(Layer)), ("head", Weight), ("embed", c_void_p), ("positions", c_void_p),
                ("embed_norm", Norm), ("norm", Norm), ("slopes", c_void_p), ("num_layers", c_int32),
                ("hidden", c_int32), ("heads", c_int32), ("kv_heads", c_int32), ("dim", c_int32), ("act", c_int32),
                ("type", c_int32), ("embed_type", c_int32), ("position_offset", c_int32), ("is_layer_norm", c_int32),
                ("block", c_int32), ("keeps_norm", c_int32), ("eps", c_float), ("scale", c_float),
                ("attn_softcap", c_float), ("clip", c_float), ("embed_scale", c_float), ("residual_scale", c_float),
                ("logit_scale", c_float), ("logit_softcap", c_float)]  # fmt: skip


class Plan(ctypes.Structure):
    """decoder.h: a StepPlan's arrays."""

    _fields_ = [("token_ids", c_void_p), ("positions", c_void_p), ("slots", c_void_p), ("sample_rows", c_void_p),
                ("sequences", Sequences), ("tokens", c_int32), ("samples", c_int32)]  # fmt: skip


class Burst(ctypes.Structure):
    """decoder.h."""

    _fields_ = [("stop_ids", c_void_p), ("token_ids", c_void_p), ("best", c_void_p), ("num_stop_ids", c_int32),
                ("max_steps", c_int32), ("limit_us", c_int32)]  # fmt: skip


_P, _I, _L, _F = c_void_p, c_int32, c_int64, c_float
_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "features": (_I, ()),
    "pool_new": (_P, (_I, _I)),
    "pool_use": (None, (_P, _I)),
    "advise": (None, (_P, _L)),
    "packed_bytes": (_L, (_P,)),
    "pack": (None, (_P, _P, _I, _L, _P)),
    "scale_bytes": (_L, (_P,)),
    "pack_quantized": (None, (_P, _P, _P, _P, _P)),
    "linear": (None, (_P, _P, _I, _P, _L, _P)),
    "rms_norm": (None, (_P, _P, _P, _P, _F, _I, _I, _I, _P)),
    "gate": (None, (_P, _P, _I, _I, _I, _I, _P)),
    "rope_write": (None, (_P, _P, _I, _L, _I, _I, _P, _P, _P, _P)),
    "write_cache": (None, (_P, _P, _P, _I, _L, _I, _P, _P)),
    "attention": (None, (_P, _P, _P, _P)),
    "decoder_new": (_P, (_P, _P)),
    "decoder_free": (None, (_P,)),
    "decoder_step": (None, (_P, _P, _P, _P)),
    "decoder_burst": (_I, (_P, _P, _P, _P)),
    "decoder_head": (None, (_P, _P, _I, _P)),
}


class Library:
    """The functions, and `pool`, the threads that all of them use. One caller at a time."""

    def __init__(self, path: str, threads: int) -> None:
        library = ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, f"llmrun_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.threads = threads
        self.pool = self.pool_new(threads, _SPIN_US)

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)  # typing only: __init__ sets them all

    def use_threads(self, threads: int) -> None:
        """Compute with so many of the `threads` from the next call on."""
        self.pool_use(self.pool, threads)


def open_library(threads: int) -> Library | None:
    """The library with threads of its own, or None, said once, where it cannot be built. A process needs one."""
    try:
        return Library(str(library_path()), threads)
    except (BuildFailed, OSError) as problem:
        sys.stderr.write(f"native: {problem}: torch's own CPU kernels are used, which are slower\n")
        return None
