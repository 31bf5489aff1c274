"""Parallel: what a tensor-parallel rank holds of each tensor, and how ranks put their parts together.

Owns the arithmetic of shards and the two collectives. Starts no process and makes no group (group.py does); a single
rank never imports torch.distributed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from runner.errors import EngineStartFailed

if TYPE_CHECKING:
    from torch import Tensor


class Span(NamedTuple):
    """Indices `start` to `stop` of a dimension that is `total` long in the whole model."""

    start: int
    stop: int
    total: int

    @classmethod
    def whole(cls, total: int) -> Span:
        """All of it."""
        return cls(0, total, total)

    @property
    def length(self) -> int:
        """How many are held here."""
        return self.stop - self.start

    def times(self, size: int) -> Span:
        """The same share where each index stands for `size` rows (heads -> rows)."""
        return Span(self.start * size, self.stop * size, self.total * size)


class Parallel:
    """One rank of `size`, in torch.distributed's default group (nccl or gloo; group.py)."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def single(cls) -> Parallel:
        """The only rank."""
        return cls(0, 1)

    def span(self, total: int, what: str) -> Span:
        """This rank's equal share. Raises EngineStartFailed where ranks do not divide `total`."""
        if total % self.size:
            raise EngineStartFailed(
                f"the model's {total} {what} cannot be split over {self.size} ranks",
                hint=f"choose a --tensor-parallel-size that divides {total}",
            )
        share = total // self.size
        return Span(self.rank * share, (self.rank + 1) * share, total)

    def kv_span(self, num_kv_heads: int) -> Span:
        """This rank's K/V heads; where there are fewer heads than ranks, several ranks hold the same head."""
        if self.size <= num_kv_heads or self.size % num_kv_heads:
            return self.span(num_kv_heads, "key/value heads")
        head = self.rank * num_kv_heads // self.size
        return Span(head, head + 1, num_kv_heads)

    def vocab_span(self, vocab_size: int) -> Span:
        """This rank's token ids: equal shares of the vocabulary padded to a multiple of the ranks."""
        share = self.vocab_share(vocab_size)
        return Span(min(self.rank * share, vocab_size), min((self.rank + 1) * share, vocab_size), vocab_size)

    def vocab_share(self, vocab_size: int) -> int:
        """Rows of embedding and head on each rank, padding included."""
        return -(-vocab_size // self.size)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """The ranks' parts joined along `dim`, on every rank."""
        if self.size == 1:
            return tensor
        import torch
        import torch.distributed as dist

        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, dim)
