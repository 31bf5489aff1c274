"""Names: how a checkpoint's tensors map onto a Decoder's parameters, as data.

Owns the canonical names, the layouts of fused tensors and the arithmetic from a wanted part to rows of a checkpoint
tensor. Reads nothing (loader.py does).

Canonical modules, each with `.weight` and perhaps `.bias` (always [out, in], whole model):

    embed position embed_norm norm head
    layers: norm1 norm1_post norm2 norm2_post
            attn.q attn.k attn.v (or attn.qkv)  attn.out  attn.q_norm attn.k_norm
            mlp.gate mlp.up (or mlp.gate_up)  mlp.down
            moe.router  moe.experts.{gate,up,gate_up,down}  moe.shared.{gate,up,gate_up,down}  moe.shared_gate
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runner.engines.native.parallel import Span
from runner.engines.native.spec import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor

QkvLayout = Literal["concat", "grouped"]
"""Rows of a fused attn.qkv: [q | k | v] or [kv_heads, q_per_kv + 2, head_dim] (InternLM2, Falcon; GPT-NeoX, BLOOM)."""


@dataclass(frozen=True)
class Fill:
    """A wanted piece of the model: `target` (a view of a parameter) becomes a part of a canonical tensor."""

    target: Tensor
    source: str
    """Canonical module within its layer: `attn.q`."""
    kind: Literal["weight", "bias"]
    spans: tuple[Span, ...]
    """One for each dimension of the canonical tensor; their totals are its shape."""
    expert: int | None = None


@runtime_checkable
class Fillable(Protocol):
    """A module whose parameters come from a checkpoint."""

    def fills(self) -> Iterable[Fill]:
        """Every piece it wants; called once its parameters have memory."""


@dataclass(frozen=True)
class Names:
    """Templates of checkpoint names (without `.weight`) by canonical module; {i} is the layer, {e} the expert.

    An expert's template without {e} is one tensor for all experts, [experts, ...].
    """

    templates: Mapping[str, str | tuple[str, ...]]
    """Of several, the first that is there."""
    prefixes: tuple[str, ...] = ("model.", "", "transformer.", "model.language_model.", "language_model.model.",
                                 "language_model.")  # fmt: skip
    """Tried in order before each name."""
    qkv_layout: QkvLayout = "concat"
    transposed: frozenset[str] = frozenset()
    """Canonical modules whose weight is stored [in, out] (GPT-2's Conv1D)."""

    def __or__(self, templates: Mapping[str, str | tuple[str, ...]]) -> Names:
        """The same with some templates changed or added."""
        return replace(self, templates={**self.templates, **templates})

    def candidates(self, module: str, kind: str, layer: int | None, expert: int | None) -> list[str]:
        """Checkpoint names that a canonical tensor may have, the likeliest first; none without a template."""
        templates = self.templates.get(module, ())
        templates = (templates,) if isinstance(templates, str) else templates
        names = [template.replace("{i}", str(layer)).replace("{e}", str(expert)) for template in templates]
        return [f"{prefix}{name}.{kind}" for prefix in self.prefixes for name in names]


class Located(NamedTuple):
    """Where a Fill is found: a tensor of `shape`, and per dimension a slice or an array of rows."""

    name: str
    shape: tuple[int, ...]
    indices: tuple[slice | NDArray[np.int64], ...]
    is_transposed: bool


_FUSED = {
    "attn.q": "attn.qkv", "attn.k": "attn.qkv", "attn.v": "attn.qkv",
    "mlp.gate": "mlp.gate_up", "mlp.up": "mlp.gate_up",
    "moe.shared.gate": "moe.shared.gate_up", "moe.shared.up": "moe.shared.gate_up",
    "moe.experts.gate": "moe.experts.gate_up", "moe.experts.up": "moe.experts.gate_up",
}  # fmt: skip


def locate(fill: Fill, names: Names, spec: DecoderSpec, layer: int | None, known: Collection[str]) -> Located | None:
    """Where the checkpoint with tensors `known` holds a Fill; None where it holds it nowhere."""
    for module in (fill.source, _FUSED.get(fill.source, fill.source)):
        candidates = names.candidates(module, fill.kind, layer, fill.expert)
        found = next((name for name in candidates if name in known), None)
        if found is not None:
            return _located(found, module, fill, names, spec)
    return None


def _located(name: str, module: str, fill: Fill, names: Names, spec: DecoderSpec) -> Located:
    """The canonical place as the file has it: within a fused tensor, transposed, or one of stacked experts."""
    rows, *rest = fill.spans
    first: slice | NDArray[np.int64] = slice(rows.start, rows.stop)
    total = rows.total
    if module != fill.source:
        first, total = _fused_rows(fill.source, rows, spec, names.qkv_layout)
    shape = (total, *(span.total for span in rest))
    index = (first, *(slice(span.start, span.stop) for span in rest))
    is_transposed = module in names.transposed and len(shape) == 2
    if is_transposed:
        shape, index = shape[::-1], index[::-1]
    if fill.expert is not None and "{e}" not in names.templates[module]:
        assert spec.moe is not None
        shape, index = (spec.moe.num_experts, *shape), (slice(fill.expert, fill.expert + 1), *index)
    return Located(name, shape, index, is_transposed)


def _fused_rows(source: str, rows: Span, spec: DecoderSpec, layout: QkvLayout) -> tuple[slice | NDArray[np.int64], int]:
    """Rows of a fused tensor that are canonical `rows` of one part, and the fused tensor's height."""
    part = source.rsplit(".", 1)[-1]
    if part in ("gate", "up"):
        offset = rows.total if part == "up" else 0
        return slice(offset + rows.start, offset + rows.stop), 2 * rows.total
    dim, kv_heads = spec.head_dim, spec.num_kv_heads
    q_rows, kv_rows = spec.num_heads * dim, kv_heads * dim
    height = q_rows + 2 * kv_rows
    if layout == "concat":
        offset = {"q": 0, "k": q_rows, "v": q_rows + kv_rows}[part]
        return slice(offset + rows.start, offset + rows.stop), height
    per_group = spec.num_heads // kv_heads
    table = np.arange(height, dtype=np.int64).reshape(kv_heads, per_group + 2, dim)
    picked = {"q": table[:, :per_group], "k": table[:, per_group], "v": table[:, per_group + 1]}[part]
    return picked.reshape(-1)[rows.start : rows.stop], height
