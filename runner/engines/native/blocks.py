"""BlockPool: who holds which block of the KV cache, and which blocks hold which prefix.

Owns counts and hashes, no K and no V. A block is in one of three states:

    held      ref count > 0       by sequences; several after a prefix hit or a fork
    cached    ref count 0, hash   kept for a prefix that may come again, evicted oldest first
    empty     ref count 0, no hash

A block gets a hash once all its tokens are computed; from then on nobody writes to it. A block without a hash is
written by its only holder; whoever wants to write to one that others hold too takes a copy first (scheduler.py).
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

from runner.engines.block_log import BlockLog

_HASH_BYTES = 16
"""128 bits: nobody finds two prefixes with the same hash, by chance or by intent."""


def root_hash(salt: bytes) -> bytes:
    """The parent of a first block: prefixes under different salts (adapters) never meet."""
    return blake2b(salt, digest_size=_HASH_BYTES).digest()


def extend_hashes(hashes: list[bytes], token_ids: list[int], block_size: int, salt: bytes, num_tokens: int) -> None:
    """Append the hashes of the full blocks within the first `num_tokens` tokens that `hashes` lacks.

    Each covers all tokens up to the end of its block: it is made from the parent's hash and the block's token ids.
    """
    start = len(hashes) * block_size
    parent = hashes[-1] if hashes else salt
    num_bytes = 4 * block_size
    raw = array("i", token_ids[start : num_tokens - num_tokens % block_size]).tobytes()
    for at in range(0, len(raw), num_bytes):
        parent = blake2b(parent + raw[at : at + num_bytes], digest_size=_HASH_BYTES).digest()
        hashes.append(parent)


class BlockPool:
    """Blocks 0 .. num_blocks - 1."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.log = BlockLog()
        """Hears here what is evicted; what is stored the scheduler tells, who knows the tokens."""
        self._refs = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Oldest first."""

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give: empty ones and cached ones."""
        return len(self._empty) + len(self._cached)

    def allocate(self) -> int:
        """A block of one's own, its content undefined. The caller made sure that `num_free` > 0."""
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        self._refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder."""
        if self._refs[block] == 0:
            del self._cached[block]
        self._refs[block] += 1

    def free(self, block: int) -> None:
        """One holder less; the last one leaves it to the prefix cache, if it has a hash."""
        assert self._refs[block] > 0, f"block {block} freed twice"
        self._refs[block] -= 1
        if self._refs[block] == 0:
            if self._hash_of[block] is None:
                self._empty.append(block)
            else:
                self._cached[block] = None

    def free_all(self, blocks: list[int]) -> None:
        """Free a sequence's blocks, the last first: the end of a prefix is worth less than its beginning."""
        for block in reversed(blocks):
            self.free(block)

    def is_shared(self, block: int) -> bool:
        """Whether more than one holds it."""
        return self._refs[block] > 1

    def num_idle(self, blocks: list[int]) -> int:
        """How many of these nobody holds: sharing them takes so many from `num_free`."""
        return sum(self._refs[block] == 0 for block in blocks)

    def find(self, hashes: list[bytes]) -> list[int]:
        """The blocks of the longest cached prefix. Nothing is held yet: `share` them before `allocate`."""
        found = []
        for one in hashes:
            block = self._block_of.get(one)
            if block is None:
                break
            found.append(block)
        return found

    def register(self, block: int, prefix_hash: bytes) -> int:
        """A held block is computed: others may share it. Returns the block to use from now on.

        That is another one where two computed the same prefix at the same time: the holder moves over, which saves
        memory, and lets beams that come back find all that their leader holds.
        """
        known = self._block_of.setdefault(prefix_hash, block)
        if known == block:
            self._hash_of[block] = prefix_hash
        else:
            self.share(known)
            self.free(block)
        return known

    def _forget(self, block: int) -> None:
        prefix_hash = self._hash_of[block]
        assert prefix_hash is not None
        del self._block_of[prefix_hash]
        self._hash_of[block] = None
        self.log.removed(prefix_hash)

    def hash_of(self, block: int) -> bytes | None:
        """Of the tokens up to its end, once they are all computed."""
        return self._hash_of[block]

    def check(self, tables: Iterable[list[int]]) -> None:
        """Assert every invariant, given the blocks of all sequences."""
        held = Counter(block for table in tables for block in table)
        assert all(self._refs[block] == held[block] for block in range(self.num_blocks)), "ref counts"
        assert min(self._refs, default=0) >= 0
        idle = [block for block in range(self.num_blocks) if self._refs[block] == 0]
        assert sorted([*self._empty, *self._cached]) == idle, "each idle block is in one list, once"
        assert all(self._hash_of[block] is None for block in self._empty), "an empty block has no hash"
        assert all(self._hash_of[block] is not None for block in self._cached), "a cached block has a hash"
        hashed = {one: block for block, one in enumerate(self._hash_of) if one is not None}
        assert hashed == self._block_of, "hashes and blocks are one to one"
        assert len(hashed) == sum(one is not None for one in self._hash_of)
