"""PackedSource: a checkpoint whose weights are quantised (AWQ, GPTQ, compressed-tensors) as a TensorSource.

Owns the way into the canonical layout (layers/quantized_linear.py); how each format packs numbers is in
packed_formats.py. Reading `X.weight` of a packed module gives it dequantised, so that whatever has no quantised form
still loads; put_packed() replaces the modules that have one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runner.engines.native.checkpoint import TensorSource
from runner.engines.native.layers.decoder import Decoder
from runner.engines.native.layers.linear import Linear
from runner.engines.native.layers.moe import Experts
from runner.engines.native.layers.quantized_linear import QuantizedExperts, QuantizedLinear, QuantizedMatrix
from runner.engines.native.layers.quantized_ops import pack_nibbles
from runner.engines.native.loader import read_fill
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

    def matrix(self, name: str, rows: slice | NDArray[np.int64], columns: slice) -> QuantizedMatrix | None:
        """Part of a packed weight in canonical layout; None as to_matrix."""
        if isinstance(rows, slice):
            return to_matrix(self._codes(name, rows, columns))
        first = int(rows.min())
        codes = self._codes(name, slice(first, int(rows.max()) + 1), columns)
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


def put_packed(
    model: Decoder, source: TensorSource, names: Names, progress: Callable[[str, float], None] | None = None
) -> list[str]:
    """Replace the modules of `model` whose weights are packed; call before load(), which fills the rest. The paths that
    have packed weights but no quantised form, which load() will fill dequantised."""
    if not isinstance(source, PackedSource):
        return []
    dense = []
    modules = [(path, module) for path, module in model.named_modules() if isinstance(module, Linear | Experts)]
    for done, (path, module) in enumerate(modules):
        if progress is not None:
            progress("loading quantised weights", done / len(modules))
        filler = _Filler(model, source, names, path)
        better = filler.linear(module) if isinstance(module, Linear) else filler.experts(module)
        if better is not None:
            model.set_submodule(path, better.to(model.device))
        elif filler.found:
            dense.append(path)
    return dense


class _Filler:
    """The quantised form of one module."""

    def __init__(self, model: Decoder, source: PackedSource, names: Names, path: str) -> None:
        self._model, self._source, self._names = model, source, names
        self._layer = int(path.split(".")[1]) if path.startswith("layers.") else None
        self.found = False
        """Whether any of its weights is packed."""

    def linear(self, linear: Linear) -> nn.Module | None:
        """None where some part has no quantised form."""
        fills = list(linear.fills())
        matrices = [self._matrix(fill) for fill in fills if fill.kind == "weight"]
        parts = [matrix for matrix in matrices if matrix is not None]
        if len(parts) < len(matrices):
            return None
        if linear.bias is not None:
            places = [(fill, self._locate(fill)) for fill in fills if fill.kind == "bias"]
            biases = [read_fill(fill, place, self._source) for fill, place in places if place is not None]
            if len(biases) < len(places):
                return None  # load() says what is missing
            linear.bias = nn.Parameter(torch.cat(biases).to(linear.bias.dtype), requires_grad=False)
        return QuantizedLinear(linear, parts)

    def experts(self, experts: Experts) -> nn.Module | None:
        """The same for every expert's gate, up and down."""
        found: dict[str, list[QuantizedMatrix]] = {}
        for fill in experts.fills():
            matrix = self._matrix(fill)
            if matrix is None:
                return None
            found.setdefault(fill.source.rsplit(".", 1)[-1], []).append(matrix)
        return QuantizedExperts(experts, list(zip(found["gate"], found["up"], strict=True)), found["down"])

    def _matrix(self, fill: Fill) -> QuantizedMatrix | None:
        place = self._locate(fill)
        if place is None or not self._source.is_packed(place.name):
            return None
        self.found = True
        if place.is_transposed or len(place.indices) != 2 or self._source.shape(place.name) != place.shape:
            return None  # load() says what is wrong with it
        rows, columns = place.indices
        assert isinstance(columns, slice)
        return self._source.matrix(place.name, rows, columns)

    def _locate(self, fill: Fill) -> Located | None:
        return locate(fill, self._names, self._model.spec, self._layer, self._source.names())
