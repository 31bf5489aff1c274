"""CpuDecoder: a Decoder on the CPU whose step is one call into kernels/cpu/decoder.h. Same interface, same results.

Weights are packed for the kernels once, each freed as soon as it is packed; a tied embedding is looked up in the packed
head. What it does not take (experts, act-order, several ranks, float16) stays a Decoder with the "cpu" ops.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runner.engines.native.burst import Burst
from runner.engines.native.kernels import cpu_library as c
from runner.engines.native.kernels.cpu import TYPES, cache_of, library
from runner.engines.native.kernels.cpu_plan import PlanSpace
from runner.engines.native.layers.attention import Attention
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.block import Layer
from runner.engines.native.layers.decoder import Decoder
from runner.engines.native.layers.linear import Linear
from runner.engines.native.layers.mlp import MLP
from runner.engines.native.layers.norm import LayerNorm, Norm, WideRMSNorm
from runner.engines.native.layers.quantized_linear import (
    QuantizedEmbedding,
    QuantizedHead,
    QuantizedLinear,
    QuantizedMatrix,
)
from runner.engines.native.plan import StepPlan

_HUGE_PAGE = 2 << 20
_ALIGNMENT = 64


def accelerate(model: Decoder) -> Decoder | CpuDecoder:
    """`model` with its weights packed, which leaves `model` itself unusable; or `model` as it was."""
    kernels = library()
    return CpuDecoder(model, kernels) if kernels is not None and is_eligible(model) else model


def is_eligible(model: Decoder) -> bool:
    """Whether the C++ decoder computes what this model does."""
    spec = model.spec
    linears = [module for module in model.modules() if hasattr(module, "sums_over")]
    return (
        type(model).forward is Decoder.forward
        and type(model).logits is Decoder.logits
        and model.device.type == "cpu"
        and model.parallel.size == 1
        and model.dtype in (torch.float32, torch.bfloat16)
        and spec.moe is None
        and spec.head_dim % 8 == 0
        and len(linears) == 4 * spec.num_layers
        and all(_is_packable(linear, model.dtype) for linear in linears)
    )


def _is_packable(linear: nn.Module, dtype: torch.dtype) -> bool:
    if isinstance(linear, QuantizedLinear):
        matrix: Any = linear.matrices[0]
        return len(linear.matrices) == 1 and matrix.perm is None
    return type(linear) is Linear and linear.weight.dtype == dtype


class CpuDecoder(nn.Module):
    """Bind caches to attentions() before the first step. One caller at a time."""

    def __init__(self, model: Decoder, kernels: c.Library) -> None:
        super().__init__()
        self.spec, self.parallel, self.dtype, self.device = model.spec, model.parallel, model.dtype, model.device
        self._c, self._model, self._kept = kernels, [model], list[Tensor]()
        self._first = [next(model.attentions())]
        self._bound: object = None
        self._space, self._logits = PlanSpace(), np.empty((0, 0), np.float32)
        self._decoder: int | None = None
        with torch.no_grad():
            self._pack(model)

    def __del__(self) -> None:
        if self.__dict__.get("_decoder"):
            self._c.decoder_free(self._decoder)

    def attentions(self) -> Iterator[Attention]:
        """In layer order."""
        return self._model[0].attentions()

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states after the last norm, [tokens, hidden] float32."""
        assert batch.plan is not None
        hidden = torch.empty(batch.plan.num_tokens, self.spec.hidden_size)
        self._step(batch.plan, None, hidden.data_ptr())
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> [rows, vocab] float32."""
        hidden = hidden.float().contiguous()
        logits = torch.empty(len(hidden), self.spec.vocab_size)
        self._bind()
        self._c.decoder_head(self._decoder, hidden.data_ptr(), len(hidden), logits.data_ptr())
        return logits

    def step(self, plan: StepPlan) -> NDArray[np.float32] | None:
        """Logits [samples, vocab] of a whole step without a Batch and without tensors; None where nothing is sampled.

        They are valid until the next step.
        """
        num_samples = len(plan.sample_rows)
        if not num_samples:
            self._step(plan, None, None)
            return None
        self._step(plan, self._logits_space(num_samples), None)
        return self._logits

    def _logits_space(self, num_samples: int) -> int:
        """Where `_logits` are, made to have so many rows."""
        if len(self._logits) != num_samples:
            self._logits = np.empty((num_samples, self.spec.vocab_size), np.float32)
            self._logits_at = self._logits.ctypes.data
        return self._logits_at

    def burst(self, plan: StepPlan, burst: Burst) -> tuple[list[list[int]], list[float]]:
        """Tokens [steps][sequences] of at least one step, and the best logits of the first (see burst.py)."""
        self._bind()
        tokens = np.empty((burst.max_steps, plan.num_sequences), np.int32)
        best = np.empty(plan.num_sequences, np.float32)
        call = c.Burst(burst.stop_ids.ctypes.data, tokens.ctypes.data, best.ctypes.data, len(burst.stop_ids),
                       burst.max_steps, burst.limit_us)  # fmt: skip
        space = self._logits_space(plan.num_sequences)
        num_steps = self._c.decoder_burst(self._decoder, self._space.fill(plan), ctypes.byref(call), space)
        return tokens[:num_steps].tolist(), best.tolist()

    def _step(self, plan: StepPlan, logits: int | None, hidden: int | None) -> None:
        self._bind()
        self._c.decoder_step(self._decoder, self._space.fill(plan), logits, hidden)

    # --- weights

    def _pack(self, model: Decoder) -> None:
        layers: list[Any] = list(model.layers)
        linears: list[tuple[Linear, bool]] = [(linear, layer.mlp.is_gated and linear is layer.mlp.up)
                   for layer in layers for linear in _linears(layer)]  # fmt: skip
        self._packed: dict[int, c.Weight] = {}
        head: Any = model.embed if self.spec.tied_head else model.head
        shapes = [self._shape(_matrix(linear), linear.bias, gated) for linear, gated in linears]
        head_weight = self._shape(_matrix(head), model.head.bias, False)
        self._arena = self._allocate([*shapes, head_weight])
        for (linear, _), weight in zip(linears, shapes, strict=True):
            self._move(linear, weight)
            self._packed[id(linear)] = weight
        self._embed = None if self.spec.tied_head else _dense(model.embed, self.dtype)
        self._move(head, head_weight)
        self._head = head_weight

    def _shape(self, matrix: Tensor | QuantizedMatrix, bias: Tensor | None, gated: bool) -> c.Weight:
        address, kind = self._floats(bias), TYPES[self.dtype]
        if not isinstance(matrix, QuantizedMatrix):
            return c.Weight(None, address, *matrix.shape, kind, gated)
        weight = c.Weight(None, address, matrix.out_features, matrix.in_features, kind, gated, None, matrix.bits,
                          matrix.group_size)  # fmt: skip
        self._kept.append(torch.empty(self._c.scale_bytes(ctypes.byref(weight)) // 4))
        weight.scales = self._kept[-1].data_ptr()
        return weight

    def _allocate(self, weights: list[c.Weight]) -> nn.Parameter:
        """One piece of memory for all, in huge pages; gives each weight its address."""
        sizes = [-(-self._c.packed_bytes(ctypes.byref(weight)) // _ALIGNMENT) * _ALIGNMENT for weight in weights]
        memory = torch.empty(sum(sizes) + _HUGE_PAGE, dtype=torch.uint8)
        memory = memory[-memory.data_ptr() % _HUGE_PAGE :][: sum(sizes)]
        self._c.advise(memory.data_ptr(), memory.numel())
        at = memory.data_ptr()
        for weight, size in zip(weights, sizes, strict=True):
            weight.data = at
            at += size
        return nn.Parameter(memory, requires_grad=False)

    def _move(self, module: Any, weight: c.Weight) -> None:
        """Packs a module's weight and lets go of what it was."""
        source = _matrix(module)
        if isinstance(source, QuantizedMatrix):
            zeros = None if source.zeros is None else source.zeros.float()
            self._c.pack_quantized(self._c.pool, source.q.data_ptr(), source.scales.data_ptr(),
                                   None if zeros is None else zeros.data_ptr(), ctypes.byref(weight))  # fmt: skip
            source.drop()
            return
        source = source if source.stride(1) == 1 else source.contiguous()
        self._c.pack(self._c.pool, source.data_ptr(), TYPES[source.dtype], source.stride(0), ctypes.byref(weight))
        module.weight = None

    def _floats(self, tensor: Tensor | None) -> int | None:
        """Address of a float32 copy that lives as long as we do."""
        if tensor is None:
            return None
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()

    # --- the model as C++ sees it

    def _bind(self) -> None:
        """Make the C++ decoder when there are caches, and again when there are others."""
        caches = self._first[0].cache
        if caches is self._bound:
            return
        assert caches is not None, "the KV cache is not made yet"
        if self._decoder:
            self._c.decoder_free(self._decoder)
        self._bound = caches
        layers: list[Any] = list(self._model[0].layers)
        self._layers = (c.Layer * len(layers))(*map(self._layer, layers, self._model[0].rope_index))
        self._decoder = self._c.decoder_new(ctypes.byref(self._describe()), self._c.pool)

    def _layer(self, layer: Layer, rope_index: int) -> c.Layer:
        attn, attention = layer.attn, layer.attn.attention
        assert attention.cache is not None
        is_wide = isinstance(attn.q_norm, WideRMSNorm)
        q_norm, k_norm = ((self._floats(norm.weight) if norm else None) for norm in (attn.q_norm, attn.k_norm))
        table = self._model[0].ropes[rope_index] if rope_index >= 0 else None
        rope = c.Rope(None if is_wide else q_norm, None if is_wide else k_norm, self.spec.norm_eps,
                      table.table.shape[1] if table else 0, table is not None and table.is_interleaved)  # fmt: skip
        norms = [self._norm(norm) for norm in (layer.norm1, layer.norm2, layer.norm1_post, layer.norm2_post)]
        weights = [self._packed[id(linear)] for linear in _linears(layer)]
        return c.Layer(
            *weights, *norms, cache_of(attention.cache), rope, table.table.data_ptr() if table else None,
            q_norm if is_wide else None, k_norm if is_wide else None, attention.window or 0,
        )  # fmt: skip

    def _norm(self, norm: Norm | None) -> c.Norm:
        if norm is None:
            return c.Norm()
        return c.Norm(self._floats(norm.weight), self._floats(norm.bias) if isinstance(norm, LayerNorm) else None)

    def _describe(self) -> c.Model:
        spec, model, first = self.spec, self._model[0], next(self.attentions())
        learned = model.position
        slopes = torch.tensor(first.slopes) if first.slopes else None
        return c.Model(
            layers=self._layers, head=self._head, num_layers=spec.num_layers,
            embed=None if self._embed is None else self._embed.data_ptr(),
            positions=None if learned is None else learned.weight.data_ptr(),
            position_offset=0 if learned is None else learned.offset,
            embed_norm=self._norm(model.embed_norm), norm=self._norm(model.norm), slopes=self._floats(slopes),
            hidden=spec.hidden_size, heads=spec.num_heads, kv_heads=spec.num_kv_heads, dim=spec.head_dim,
            act=c.ACTIVATIONS.index(spec.activation), type=TYPES[self.dtype], embed_type=TYPES[self.dtype],
            is_layer_norm=spec.norm == "layer", block=c.BLOCKS.index(spec.block), keeps_norm=spec.residual_post_norm,
            eps=spec.norm_eps, scale=first.scale, attn_softcap=spec.attn_softcap or 0.0, clip=spec.clip_qkv or 0.0,
            embed_scale=model.embed_scale, residual_scale=spec.residual_scale, logit_scale=spec.logit_scale,
            logit_softcap=spec.logit_softcap or 0.0,
        )  # fmt: skip


def _linears(layer: Layer) -> tuple[Linear, Linear, Linear, Linear]:
    """In the order of decoder.h's Layer."""
    assert isinstance(layer.mlp, MLP)
    return layer.attn.qkv, layer.attn.out, layer.mlp.up, layer.mlp.down


def _matrix(module: Any) -> Tensor | QuantizedMatrix:
    """The weight of a Linear, Embedding or Head; of one rank, so without padding."""
    if isinstance(module, QuantizedLinear):
        module = module.matrices[0]
    elif isinstance(module, QuantizedEmbedding | QuantizedHead):
        module = module.matrix
    found: Tensor | QuantizedMatrix = module if isinstance(module, QuantizedMatrix) else module.weight
    return found


def _dense(embedding: nn.Module, dtype: torch.dtype) -> Tensor:
    """An embedding that is not the head too is looked up as it is."""
    matrix = _matrix(embedding)
    return matrix.dequantize().to(dtype) if isinstance(matrix, QuantizedMatrix) else matrix
