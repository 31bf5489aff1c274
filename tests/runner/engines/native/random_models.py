"""Decoders with random weights made on the device, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import torch

from runner.engines.native.kernels.ops import ops, use_ops
from runner.engines.native.layers.cache import KVCache
from runner.engines.native.layers.decoder import Decoder
from runner.engines.native.models import find_family
from runner.engines.native.parallel import Parallel


@torch.inference_mode()
def random_decoder(config: dict[str, Any], dtype: torch.dtype, device: str, context: int, backend: str) -> Decoder:
    """A model of `config` (as in config.json), seeded."""
    family = find_family(config)
    assert family is not None
    torch.manual_seed(0)
    model = Decoder(family.spec(config), Parallel.single(), dtype, device)
    model.to_empty(device=torch.device(device))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "norm" in name:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.5 * parameter.shape[-1] ** -0.5)
    model.set_context(context)
    use_ops(model, ops(backend))
    return model


def bind_cache(model: Decoder, num_blocks: int, block_size: int, dtype: torch.dtype) -> KVCache:
    """Give every layer a cache."""
    attentions = list(model.attentions())
    first = attentions[0]
    cache = KVCache(
        len(attentions), num_blocks, block_size, first.num_kv_heads, first.head_dim, dtype, str(model.device)
    )
    for attention, layer in zip(attentions, cache.layers, strict=True):
        attention.cache = layer
    return cache


def drop(model: Decoder) -> None:
    """Free the weights and the cache, also where somebody still holds the model."""
    for attention in model.attentions():
        attention.cache = None
    model.to("meta")
