"""KVCache: keys and values of all layers in blocks. Owns the memory, not who uses which block (blocks.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_QUANTIZED = (torch.int8, torch.float8_e4m3fn)


@dataclass(frozen=True)
class LayerCache:
    """One layer: k and v [num_blocks, block_size, kv_heads, head_dim] of this rank.

    int8 and fp8 carry a float32 scale for each token and head, [num_blocks, block_size, kv_heads].
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return self.k.shape[1]

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [tensor for tensor in (self.k, self.v, self.k_scale, self.v_scale) if tensor is not None]


def bytes_per_block(num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> int:
    """Memory of one block of all layers on one rank (`num_kv_heads` of this rank)."""
    scales = 4 if dtype in _QUANTIZED else 0
    return 2 * num_layers * block_size * num_kv_heads * (head_dim * dtype.itemsize + scales)


class KVCache:
    """The blocks of all layers; `layers[i]` is bound to the i-th Attention."""

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        scale = (lambda: torch.zeros(shape[:3], device=device)) if dtype in _QUANTIZED else (lambda: None)
        # zeros, not empty: masked scores of never written slots must not be NaN
        self.layers = [
            LayerCache(
                torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device),
                scale(), scale(),
            )
            for _ in range(num_layers)
        ]  # fmt: skip

    def copy_blocks(self, pairs: NDArray[np.int32]) -> None:
        """Copy whole blocks, `pairs` [copies, 2] of (from, to); before anything else in a step."""
        if not len(pairs):
            return
        source, target = torch.from_numpy(pairs.astype(np.int64)).to(self.layers[0].k.device).unbind(1)
        for layer in self.layers:
            for tensor in layer.tensors():
                tensor[target] = tensor[source]
