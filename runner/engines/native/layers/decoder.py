"""Decoder: a whole decoder-only model, built from a DecoderSpec without memory; loader.py fills it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from runner.engines.native.kernels.ops import Rotation
from runner.engines.native.layers.attention import Attention
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.block import Layer
from runner.engines.native.layers.embedding import Embedding, Head, PositionEmbedding
from runner.engines.native.layers.norm import make_norm
from runner.engines.native.layers.rotary import RopeTable
from runner.engines.native.parallel import Parallel
from runner.engines.native.spec import DecoderSpec, RopeSpec


class Decoder(nn.Module):
    """`device` is where set_context() puts rotary tables and the loader parameters; until then all is on "meta"."""

    can_capture = True
    """Whether a step never makes the host wait, so that CUDA graphs can record it."""

    def __init__(self, spec: DecoderSpec, parallel: Parallel, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.spec, self.parallel, self.dtype, self.device = spec, parallel, dtype, torch.device(device)
        self.embed = Embedding(spec, parallel, dtype)
        self.position = PositionEmbedding(spec, dtype) if spec.position == "learned" else None
        self.embed_norm = make_norm(spec, "embed_norm", dtype) if spec.embed_norm else None
        self.layers = nn.ModuleList(Layer(spec, index, parallel, dtype) for index in range(spec.num_layers))
        self.norm = make_norm(spec, "norm", dtype) if spec.final_norm else None
        self.head = Head(spec, parallel, dtype, self.embed if spec.tied_head else None)
        # rounded as the model's own embedding scale is (Gemma: 55.5 for sqrt(3072) in bf16)
        self.embed_scale = torch.tensor(spec.embed_scale, dtype=dtype).item()
        self.rope_specs, self.rope_index = _distinct_ropes(spec)
        self.ropes: list[RopeTable] = []
        self._blocks: list[Layer] = list(self.layers)  # type: ignore[arg-type]

    def set_context(self, length: int) -> None:
        """Make rotary tables for positions below `length`; call before CUDA graphs are captured."""
        self.ropes = [RopeTable(spec, length, self.device) for spec in self.rope_specs]

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states after the last norm, [tokens, hidden]."""
        x = self.embed(batch.token_ids)
        if self.embed_scale != 1.0:
            x = x.mul_(self.embed_scale)
        if self.position is not None:
            x = x.add_(self.position(batch.positions))
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        return self._run_layers(x, batch)

    def _run_layers(self, x: Tensor, batch: Batch) -> Tensor:
        rotations: list[Rotation | None] = [table.rotation(batch.positions) for table in self.ropes]
        rotations.append(None)
        delta: Tensor | None = None
        for layer, index in zip(self._blocks, self.rope_index, strict=True):
            x, delta = layer(x, delta, rotations[index], batch)
        if self.norm is not None:
            return self.norm.add(x, delta)
        return x if delta is None else x.add_(delta)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> [rows, vocab] float32, on every rank."""
        out: Tensor = self.head(hidden)
        return out

    def attentions(self) -> Iterator[Attention]:
        """In layer order."""
        for layer in self._blocks:
            yield layer.attn.attention


def _distinct_ropes(spec: DecoderSpec) -> tuple[list[RopeSpec], list[int]]:
    """The different RopeSpecs, and for each layer which one it uses (-1: none)."""
    distinct: list[RopeSpec] = []
    index = []
    for layer in range(spec.num_layers):
        rope = spec.rope_of(layer)
        if rope is not None and not rope.dim:
            rope = replace(rope, dim=spec.head_dim)
        if rope is not None and rope not in distinct:
            distinct.append(rope)
        index.append(-1 if rope is None else distinct.index(rope))
    return distinct, index
