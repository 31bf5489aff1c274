"""PackedSource: a checkpoint whose weights are quantised (AWQ, GPTQ, compressed-tensors) as a TensorSource.

Owns the way into the canonical layout (layers/quantized_linear.py); how each format packs numbers is in
packed_formats.py. Reading `X.weight` of a packed module gives it dequantised, so that whatever has no quantised form
still loads; Packer gives the modules that have one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from runner.engines.native.checkpoint import TensorSource
from runner.engines.native.kernels.torch_quantized import pack_nibbles
from runner.engines.native.layers.decoder import Decoder
from runner.engines.native.layers.linear import Linear
from runner.engines.native.layers.moe import Experts
from runner.engines.native.layers.quantized_linear import QuantizedExperts, QuantizedLinear, QuantizedMatrix
from runner.engines.native.loader import layer_of, read_fill
from runner.engines.native.packed_formats import Codes, Layout, find_layout
from runner.engines.native.quantize import GROUP_SIZES
from runner.engines.native.weights import Fill, Located, Names, locate


def open_packed(source: TensorSource, config: dict[str, Any]) -> TensorSource:
    """`source` itself where config.json names no quantisation. Raises EngineStartFailed for one that is unknown."""
    layout = find_layout(config)
    return source if layout is None else PackedSource(source, layout)


class PackedSource:
    """`source` with a tensor `X.weight` for each packed module X."""

    def __init__(self, source: TensorSource, layout: Layout) -> None:
        self._source, self._layout = source, layout
        suffix = "." + layout.weight
        self._names = source.names()
        self._packed = {name.removesuffix(suffix) + ".weight" for name in self._names if name.endswith(suffix)}

    def names(self) -> set[str]:
        """With both forms of what is packed."""
        return self._names | self._packed

    def shape(self, name: str) -> tuple[int, ...]:
        """[out, in] of what is packed."""
        if name not in self._packed:
            return self._source.shape(name)
        return self._layout.shape(self._source, name.removesuffix(".weight"))

    def file(self, name: str) -> str:
        """Of the packed tensor."""
        return self._source.file(name.removesuffix("weight") + self._layout.weight if name in self._packed else name)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> Tensor:
        """float32 of what is packed."""
        if name not in self._packed:
            return self._source.read(name, index)
        rows, columns = index or (slice(None), slice(None))
        codes = self._codes(name, rows, columns)
        groups = codes.group_of.long()
        return (codes.q.float() - codes.zeros[:, groups]) * codes.scales[:, groups]

    def is_packed(self, name: str) -> bool:
        """Whether `X.weight` is stored quantised."""
        return name in self._packed

    def matrix(self, place: Located) -> QuantizedMatrix | None:
        """Part of a weight in canonical layout; None for another shape or what is not packed, and as to_matrix."""
        is_plain = not place.is_transposed and len(place.indices) == 2
        if not is_plain or not self.is_packed(place.name) or self.shape(place.name) != place.shape:
            return None
        rows, columns = place.indices
        assert isinstance(columns, slice)
        if isinstance(rows, slice):
            return to_matrix(self._codes(place.name, rows, columns))
        first = int(rows.min())
        codes = self._codes(place.name, slice(first, int(rows.max()) + 1), columns)
        return to_matrix(codes.pick(torch.from_numpy(rows - first)))

    def _codes(self, name: str, rows: slice, columns: slice) -> Codes:
        out, width = self.shape(name)
        whole = (slice(*rows.indices(out)), slice(*columns.indices(width)))
        return self._layout.read(self._source, name.removesuffix(".weight"), *whole)


def to_matrix(codes: Codes) -> QuantizedMatrix | None:
    """Columns sorted by group, then cut into equal groups of a size that kernels know. None where groups are too uneven
    for that (act-order split over ranks)."""
    perm = codes.group_of.argsort(stable=True)
    is_sorted = bool((perm == torch.arange(len(perm))).all())
    groups, counts = torch.unique(codes.group_of, return_counts=True)
    size = math.gcd(*counts.tolist())
    if codes.bits == 4 or len(groups) > 1:
        size = next((known for known in GROUP_SIZES if size % known == 0), 0)
    if not size:
        return None
    scales, zeros = (part[:, groups].repeat_interleave(counts // size, 1) for part in (codes.scales, codes.zeros))
    q = codes.q if is_sorted else codes.q[:, perm]
    order = None if is_sorted else perm
    if codes.bits == 4:
        return QuantizedMatrix(pack_nibbles(q), scales, zeros.to(torch.uint8), order)
    # kernels want int8; what has 128 as its zero everywhere is symmetric
    signed, zeros = (q.to(torch.int16) - 128).to(torch.int8), (zeros - 128).to(torch.int16)
    return QuantizedMatrix(signed, scales, zeros if zeros.any() else None, order)


class Packer:
    """A `take` of loader.load(): (path, module) -> its quantised form, where all its weights have one."""

    def __init__(self, model: Decoder, source: TensorSource, names: Names) -> None:
        self._model, self._source, self._names = model, source, names
        self.dense: list[str] = []
        """Paths with packed weights that have no quantised form: load() fills them dequantised."""

    def __call__(self, path: str, module: nn.Module) -> nn.Module | None:
        """None leaves the module to load(), which also says what is wrong or missing."""
        source, known = self._source, self._source.names()
        if not isinstance(source, PackedSource) or not isinstance(module, Linear | Experts):
            return None
        places = [(fill, locate(fill, self._names, self._model.spec, layer_of(path), known)) for fill in module.fills()]
        if not any(place is not None and source.is_packed(place.name) for _, place in places):
            return None
        form = _quantized(module, places, source)
        if form is None:
            self.dense.append(path)
        return None if form is None else form.to(self._model.device)


def _quantized(
    module: Linear | Experts, places: list[tuple[Fill, Located | None]], source: PackedSource
) -> nn.Module | None:
    parts: dict[str, list[QuantizedMatrix]] = {}
    biases: list[Tensor] = []
    for fill, place in places:
        if place is None:
            return None
        if fill.kind == "bias":
            biases.append(read_fill(fill, place, source))
            continue
        matrix = source.matrix(place)
        if matrix is None:
            return None
        parts.setdefault(fill.source.rsplit(".", 1)[-1], []).append(matrix)
    if isinstance(module, Experts):
        return QuantizedExperts(module, list(zip(parts["gate"], parts["up"], strict=True)), parts["down"])
    if module.bias is not None:
        module.bias = nn.Parameter(torch.cat(biases).to(module.bias.dtype), requires_grad=False)
    return QuantizedLinear(module, [matrix for matrices in parts.values() for matrix in matrices])
