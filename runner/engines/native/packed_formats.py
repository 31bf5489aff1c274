"""How AWQ, GPTQ and compressed-tensors pack integer weights, and what a config.json says about it.

Owns bit order, zero offsets and tensor names of each format; gives plain integers (Codes). Formulas: AutoAWQ's
WQLinear_GEMM, AutoGPTQ's QuantLinear (w = (q - zero) * scale[g_idx], version 1 stores zero - 1), compressed-tensors'
pack_to_int32. All pack into little-endian int32 words, lowest bits first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from model_cards.errors import ModelFileError
from runner.engines.native.checkpoint import TensorSource
from runner.engines.native.layers.quantized_ops import unpack_nibbles
from runner.errors import EngineStartFailed

_AWQ_COLUMNS = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where columns 0..7 are in a word: nibble i holds column (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
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


class Layout(Protocol):
    """One format. `base` is a module's name in the checkpoint."""

    @property
    def marker(self) -> str:
        """The tensor that every packed module has."""

    def shape(self, source: TensorSource, base: str) -> tuple[int, int]:
        """[out, in]"""

    def read(self, source: TensorSource, base: str, rows: slice, columns: slice) -> Codes:
        """Rows (out) and columns (in), both with start and stop. Raises ModelFileError."""


@dataclass(frozen=True)
class Gptq:
    """qweight int32 [in / n, out], qzeros int32 [groups, out / n], scales [groups, out], g_idx [in]."""

    bits: int
    zero_offset: int
    """Added to stored zeros: 1 in version 1 of the format."""
    marker: str = "qweight"

    def shape(self, source: TensorSource, base: str) -> tuple[int, int]:
        """See Layout."""
        words, out = _two(source, f"{base}.qweight")
        return out, words * 32 // self.bits

    def read(self, source: TensorSource, base: str, rows: slice, columns: slice) -> Codes:
        """See Layout."""
        words, inner = _words(columns, self.bits)
        q = unpack(source.read(f"{base}.qweight", (words, rows)).t(), self.bits)[:, inner]
        words, inner = _words(rows, self.bits)
        everything = slice(None)
        zeros = unpack(source.read(f"{base}.qzeros", (everything, words)), self.bits)[:, inner].t().to(torch.int16)
        zeros = (zeros + self.zero_offset) & (2**self.bits - 1)
        scales = source.read(f"{base}.scales", (everything, rows)).t().float()
        width = self.shape(source, base)[1]
        return Codes(self.bits, q, scales, zeros, _groups(source, f"{base}.g_idx", columns, width, scales.shape[1]))


@dataclass(frozen=True)
class Awq:
    """qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales [groups, out]."""

    marker: str = "qweight"

    def shape(self, source: TensorSource, base: str) -> tuple[int, int]:
        """See Layout."""
        width, words = _two(source, f"{base}.qweight")
        return words * 8, width

    def read(self, source: TensorSource, base: str, rows: slice, columns: slice) -> Codes:
        """See Layout."""
        words, inner = _words(rows, 4)
        everything = slice(None)
        q = self._unpack(source.read(f"{base}.qweight", (columns, words)))[inner]
        scales = source.read(f"{base}.scales", (everything, rows)).t().float()
        if f"{base}.qzeros" in source.names():
            zeros = self._unpack(source.read(f"{base}.qzeros", (everything, words)))[inner].to(torch.int16)
        else:
            zeros = torch.full(scales.shape, 8, dtype=torch.int16)
        width = self.shape(source, base)[1]
        return Codes(4, q, scales, zeros, _groups(source, None, columns, width, scales.shape[1]))

    def _unpack(self, words: Tensor) -> Tensor:
        """[n, out / 8] -> uint8 [out, n]"""
        values = unpack(words, 4).view(len(words), -1, 8)[..., list(_AWQ_COLUMNS)]
        return values.reshape(len(words), -1).t()


@dataclass(frozen=True)
class CompressedTensors:
    """weight_packed int32 [out, ceil(in / n)], weight_scale [out, groups], weight_shape, weight_g_idx [in]; where it is
    asymmetric weight_zero_point int32 [ceil(out / n), groups]. Values are stored plus 2^(bits - 1)."""

    marker: str = "weight_packed"

    def shape(self, source: TensorSource, base: str) -> tuple[int, int]:
        """See Layout."""
        out, width = source.read(f"{base}.weight_shape").tolist()
        return int(out), int(width)

    def read(self, source: TensorSource, base: str, rows: slice, columns: slice) -> Codes:
        """See Layout."""
        bits = self._bits(source, base)
        words, inner = _words(columns, bits)
        q = unpack(source.read(f"{base}.weight_packed", (rows, words)), bits)[:, inner]
        scales = source.read(f"{base}.weight_scale", (rows, slice(None))).float()
        zeros = self._zeros(source, base, rows, bits, scales)
        width = self.shape(source, base)[1]
        return Codes(bits, q, scales, zeros, _groups(source, f"{base}.weight_g_idx", columns, width, scales.shape[1]))

    def _bits(self, source: TensorSource, base: str) -> int:
        """From the shapes: config.json may give several groups of modules."""
        name, width = f"{base}.weight_packed", self.shape(source, base)[1]
        words = _two(source, name)[1]
        for bits in (4, 8):
            if words == -(-width * bits // 32):
                return bits
        raise ModelFileError(f"tensor {name} in {source.file(name)} has {words:,} words for {width:,} columns; that is "
                             f"neither 4 nor 8 bits a weight: {_ELSE}")  # fmt: skip

    def _zeros(self, source: TensorSource, base: str, rows: slice, bits: int, scales: Tensor) -> Tensor:
        name = f"{base}.weight_zero_point"
        if name not in source.names():
            return torch.full(scales.shape, 2 ** (bits - 1), dtype=torch.int16)
        words, inner = _words(rows, bits)
        return unpack(source.read(name, (words, slice(None))).t(), bits)[:, inner].t().to(torch.int16)


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 [a, b] -> uint8 [a, b * 32 / bits]"""
    octets = words.contiguous().view(torch.uint8)
    return unpack_nibbles(octets) if bits == 4 else octets


def _words(part: slice, bits: int) -> tuple[slice, slice]:
    """The words that hold a part of a packed dimension, and the part within them."""
    n = 32 // bits
    first = part.start // n
    return slice(first, -(-part.stop // n)), slice(part.start - first * n, part.stop - first * n)


def _groups(source: TensorSource, name: str | None, columns: slice, width: int, num_groups: int) -> Tensor:
    """The group of each column: as stored, else equal runs (the last one may be short)."""
    if name is not None and name in source.names():
        stored = source.read(name, (columns,)).long()
        if not (stored < 0).any():
            return stored
    return torch.arange(columns.start, columns.stop) // -(-width // num_groups)


def _two(source: TensorSource, name: str) -> tuple[int, int]:
    shape = source.shape(name)
    if len(shape) != 2:
        raise ModelFileError(f"tensor {name} in {source.file(name)} has shape {list(shape)}; two dimensions are wanted")
    return shape


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
    return Awq()


def _gptq(stated: dict[str, Any]) -> Layout:
    bits, form = stated.get("bits"), stated.get("checkpoint_format") or "gptq"
    _allow("GPTQ's bits", bits, 4, 8)
    _allow("GPTQ's checkpoint_format", form, "gptq", "gptq_v2")
    for pattern, changes in (stated.get("dynamic") or {}).items():
        _allow(f"GPTQ's bits of {pattern}", (changes or {}).get("bits", bits), bits)
    return Gptq(int(bits or 0), 1 if form == "gptq" else 0)


def _compressed_tensors(stated: dict[str, Any]) -> Layout:
    _allow("compressed-tensors' format", stated.get("format"), "pack-quantized")
    _allow("compressed-tensors' sparsity", (stated.get("sparsity_config") or {}).get("format", "dense"), "dense")
    for name, group in (stated.get("config_groups") or {}).items():
        weights = group.get("weights") or {}
        _allow(f"bits of {name}", weights.get("num_bits"), 4, 8)
        _allow(f"type of {name}", weights.get("type", "int"), "int")
        _allow(f"strategy of {name}", weights.get("strategy"), "group", "channel")
        _allow(f"input_activations of {name}", group.get("input_activations"), None)
    return CompressedTensors()
