"""How AWQ, GPTQ and compressed-tensors pack integer weights, and what a config.json says about it.

Owns bit order, zero offsets and tensor names of each format; gives plain integers (Codes). Formulas: AutoAWQ's
WQLinear_GEMM, AutoGPTQ's QuantLinear (w = (q - zero) * scale[g_idx]), compressed-tensors' pack_to_int32. All pack into
little-endian int32 words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model_cards.errors import ModelFileError
from runner.engines.native.checkpoint import TensorSource
from runner.engines.native.kernels.torch_quantized import unpack_nibbles
from runner.errors import EngineStartFailed

_ELSE = (
    "out=llamacpp runs the model as a GGUF file; --quantize makes int8 or int4 of a checkpoint that is not quantised"
)


@dataclass(frozen=True)
class Codes:
    """Part of a quantised weight: w = (q - zeros[group_of]) * scales[group_of]."""

    bits: int
    q: Tensor
    """uint8 [out, in]"""
    scales: Tensor
    """float32 [out, groups]"""
    zeros: Tensor
    """int16 [out, groups]"""
    group_of: Tensor
    """int64 [in]: the group of each column."""

    def pick(self, rows: Tensor) -> Codes:
        """Some rows."""
        return replace(self, q=self.q[rows], scales=self.scales[rows], zeros=self.zeros[rows])


@dataclass(frozen=True)
class Layout:
    """One format: what it calls its tensors, behind a module's name (`base`), and how they lie."""

    weight: str
    """Packed, [out, in]; every packed module has it."""
    scales: str
    """[out, groups]"""
    zeros: str
    """Packed, [out, groups]; several rows share a word."""
    group_of: str | None = None
    """[in]; where there is no such tensor groups are equal runs of columns."""
    shape_name: str | None = None
    """The tensor that says [out, in]; None where the packed shape tells it."""
    bits: int | None = None
    """None where the shapes tell it: config.json may give several groups of modules."""
    is_transposed: bool = True
    """All is stored [in, out] and [groups, out]."""
    packs_rows: bool = False
    """A word of the weight holds several rows, not several columns."""
    order: tuple[int, ...] | None = None
    """Which nibble of a word holds each of 8 values; None for lowest bits first."""
    zero_offset: int = 0
    """Added to stored zeros."""
    has_zeros: bool = True
    """Always; else without them the zero is 2^(bits - 1)."""

    def shape(self, source: TensorSource, base: str) -> tuple[int, int]:
        """[out, in]"""
        if self.shape_name is not None:
            out, width = source.read(f"{base}.{self.shape_name}").tolist()
            return int(out), int(width)
        assert self.bits is not None
        (out, width), values = self._packed_shape(source, base), 32 // self.bits
        return (out * values, width) if self.packs_rows else (out, width * values)

    def read(self, source: TensorSource, base: str, rows: slice, columns: slice) -> Codes:
        """Rows (out) and columns (in), both with start and stop. Raises ModelFileError."""
        bits, groups = self.bits or self._find_bits(source, base), slice(None)
        q = self._unpacked(source, f"{base}.{self.weight}", rows, columns, bits, self.packs_rows)
        scales = self._stored(source, f"{base}.{self.scales}", rows, groups).float()
        name = f"{base}.{self.zeros}"
        if self.has_zeros or name in source.names():
            zeros = self._unpacked(source, name, rows, groups, bits, True).to(torch.int16)
            zeros = (zeros + self.zero_offset) & (2**bits - 1)
        else:
            zeros = torch.full(scales.shape, 2 ** (bits - 1), dtype=torch.int16)
        return Codes(bits, q, scales, zeros, self._groups(source, base, columns, scales.shape[1]))

    def _packed_shape(self, source: TensorSource, base: str) -> tuple[int, int]:
        name = f"{base}.{self.weight}"
        shape = source.shape(name)
        if len(shape) != 2:
            raise ModelFileError(
                f"tensor {name} in {source.file(name)} has shape {list(shape)}; two dimensions are wanted"
            )
        return shape[::-1] if self.is_transposed else shape

    def _find_bits(self, source: TensorSource, base: str) -> int:
        width, words = self.shape(source, base)[1], self._packed_shape(source, base)[1]
        for bits in (4, 8):
            if words == -(-width * bits // 32):
                return bits
        name = f"{base}.{self.weight}"
        raise ModelFileError(f"tensor {name} in {source.file(name)} has {words:,} words for {width:,} columns; that is "
                             f"neither 4 nor 8 bits a weight: {_ELSE}")  # fmt: skip

    def _groups(self, source: TensorSource, base: str, columns: slice, num_groups: int) -> Tensor:
        """The group of each column; of equal runs the last one may be short."""
        name = f"{base}.{self.group_of}"
        if name in source.names():
            stored = source.read(name, (columns,)).long()
            if not (stored < 0).any():
                return stored
        return torch.arange(columns.start, columns.stop) // -(-self.shape(source, base)[1] // num_groups)

    def _stored(self, source: TensorSource, name: str, rows: slice, columns: slice) -> Tensor:
        return source.read(name, (columns, rows)).t() if self.is_transposed else source.read(name, (rows, columns))

    def _unpacked(
        self, source: TensorSource, name: str, rows: slice, columns: slice, bits: int, by_rows: bool
    ) -> Tensor:
        """uint8 [rows, columns]"""
        words, inner = _words(rows if by_rows else columns, bits)
        if by_rows:
            return self._unpack(self._stored(source, name, words, columns).t(), bits)[:, inner].t()
        return self._unpack(self._stored(source, name, rows, words), bits)[:, inner]

    def _unpack(self, words: Tensor, bits: int) -> Tensor:
        """int32 [a, b] -> uint8 [a, b * 32 / bits]"""
        octets = words.contiguous().view(torch.uint8)
        values = unpack_nibbles(octets) if bits == 4 else octets
        return values if self.order is None else values.view(len(values), -1, 8)[..., list(self.order)].flatten(1)


_AWQ = Layout("qweight", "scales", "qzeros", bits=4, packs_rows=True, order=(0, 4, 1, 5, 2, 6, 3, 7), has_zeros=False)
"""Nibble i of a word holds row (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
_GPTQ = Layout("qweight", "scales", "qzeros", group_of="g_idx")
_COMPRESSED_TENSORS = Layout(
    "weight_packed", "weight_scale", "weight_zero_point", group_of="weight_g_idx", shape_name="weight_shape",
    is_transposed=False, has_zeros=False,
)  # fmt: skip


def _words(part: slice, bits: int) -> tuple[slice, slice]:
    """The words that hold a part of a packed dimension, and the part within them."""
    n = 32 // bits
    first = part.start // n
    return slice(first, -(-part.stop // n)), slice(part.start - first * n, part.stop - first * n)


# --- config.json ------------------------------------------------------------------------------------------------------


def find_layout(config: dict[str, Any]) -> Layout | None:
    """How config.json says that weights are packed; None where they are not. Raises EngineStartFailed."""
    stated = config.get("quantization_config")
    if not stated:
        return None
    method = str(stated.get("quant_method", "")).lower()
    if method not in ("awq", "gptq", "compressed-tensors"):
        raise EngineStartFailed(
            f"the checkpoint is quantised by {method or 'a method without a name'}; out=native reads awq, gptq and "
            "compressed-tensors (pack-quantized)", hint=_ELSE,
        )  # fmt: skip
    return {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed_tensors}[method](stated)


def _allow(what: str, got: Any, *allowed: Any) -> None:
    if got not in allowed:
        wanted = " or ".join(str(one) for one in allowed)
        raise EngineStartFailed(f"quantization_config: {what} is {got}; out=native reads {wanted}", hint=_ELSE)


def _awq(stated: dict[str, Any]) -> Layout:
    _allow("AWQ's bits", stated.get("bits", stated.get("w_bit")), 4)
    _allow("AWQ's version", str(stated.get("version", "gemm")).lower(), "gemm")
    return _AWQ


def _gptq(stated: dict[str, Any]) -> Layout:
    bits, form = stated.get("bits"), stated.get("checkpoint_format") or "gptq"
    _allow("GPTQ's bits", bits, 4, 8)
    _allow("GPTQ's checkpoint_format", form, "gptq", "gptq_v2")
    for pattern, changes in (stated.get("dynamic") or {}).items():
        _allow(f"GPTQ's bits of {pattern}", (changes or {}).get("bits", bits), bits)
    return replace(_GPTQ, bits=bits, zero_offset=1 if form == "gptq" else 0)  # version 1 stores zero - 1


def _compressed_tensors(stated: dict[str, Any]) -> Layout:
    _allow("compressed-tensors' format", stated.get("format"), "pack-quantized")
    _allow("compressed-tensors' sparsity", (stated.get("sparsity_config") or {}).get("format", "dense"), "dense")
    for name, group in (stated.get("config_groups") or {}).items():
        weights = group.get("weights") or {}
        _allow(f"bits of {name}", weights.get("num_bits"), 4, 8)
        _allow(f"type of {name}", weights.get("type", "int"), "int")
        _allow(f"strategy of {name}", weights.get("strategy"), "group", "channel")
        _allow(f"input_activations of {name}", group.get("input_activations"), None)
    return _COMPRESSED_TENSORS
