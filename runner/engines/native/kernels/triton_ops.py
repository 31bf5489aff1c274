"""The Triton backend: the table of ops.py for CUDA."""

from __future__ import annotations

from dataclasses import replace

from runner.engines.native.kernels.activation import gate
from runner.engines.native.kernels.attention import paged_attention
from runner.engines.native.kernels.linear import int4_linear, int8_linear, linear
from runner.engines.native.kernels.moe import moe
from runner.engines.native.kernels.norm import add_rms_norm, rms_norm
from runner.engines.native.kernels.rotary import rope_write, write_cache
from runner.engines.native.kernels.torch_ops import OPS as REFERENCE

OPS = replace(
    REFERENCE,
    linear=linear,
    rms_norm=rms_norm,
    add_rms_norm=add_rms_norm,
    gate=gate,
    rope_write=rope_write,
    write_cache=write_cache,
    paged_attention=paged_attention,
    moe=moe,
    int8_linear=int8_linear,
    int4_linear=int4_linear,
)
