"""The KV cache of the mocker: paged blocks with reference counts and a prefix cache (least recently used goes first).

Counts only; nothing is stored in the blocks. `num_free` includes cached blocks that nobody uses.
"""

from __future__ import annotations

from collections import OrderedDict

from runner.engines.block_log import BlockLog


def block_hashes(token_ids: list[int], block_size: int) -> list[int]:
    """One hash for each full block; each covers all tokens up to its end."""
    hashes: list[int] = []
    parent = 0
    for end in range(block_size, len(token_ids) + 1, block_size):
        parent = hash((parent, tuple(token_ids[end - block_size : end])))
        hashes.append(parent)
    return hashes


def key_bytes(key: int) -> bytes:
    """A hash as the block log names it."""
    return key.to_bytes(8, "little", signed=True)


class BlockPool:
    """`num_blocks` blocks. Invariant: used + idle cached + never filled = num_blocks."""

    def __init__(self, num_blocks: int, *, enable_prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.log = BlockLog()
        """Hears here what is evicted; what is stored the engine tells, who knows the tokens."""
        self._has_cache = enable_prefix_caching
        self._num_plain = 0
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_used(self) -> int:
        """Blocks that a request holds."""
        return self._num_plain + len(self._users)

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now."""
        return self.num_blocks - self.num_used

    def num_cached(self, hashes: list[int]) -> int:
        """How many leading blocks are there already."""
        if not self._has_cache:
            return 0
        return next(
            (at for at, key in enumerate(hashes) if key not in self._users and key not in self._idle), len(hashes)
        )

    def num_needed(self, hashes: list[int], num_blocks: int) -> int:
        """Free blocks that `take` would use up."""
        return num_blocks - sum(1 for key in hashes[: self.num_cached(hashes)] if key in self._users)

    def take(self, hashes: list[int], num_blocks: int) -> BlockTable:
        """Blocks for a prompt: its full blocks by hash, the rest plain. The caller has checked num_needed."""
        shared = hashes if self._has_cache else []
        for key in shared:
            self._idle.pop(key, None)
            self._users[key] = self._users.get(key, 0) + 1
        table = BlockTable(list(shared), num_blocks - len(shared))
        self._num_plain += table.num_plain
        self._evict()
        return table

    def grow(self, table: BlockTable) -> bool:
        """One more block, or False when there is none."""
        if self.num_free < 1:
            return False
        table.num_plain += 1
        self._num_plain += 1
        self._evict()
        return True

    def give_back(self, table: BlockTable) -> None:
        """Free a request's blocks; its full prompt blocks stay cached while there is room."""
        for key in table.hashes:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self._idle[key] = None
        self._num_plain -= table.num_plain
        table.hashes, table.num_plain = [], 0

    def _evict(self) -> None:
        while len(self._idle) > self.num_free:
            key, _ = self._idle.popitem(last=False)
            self.log.removed(key_bytes(key))


class BlockTable:
    """The blocks of one request."""

    def __init__(self, hashes: list[int], num_plain: int) -> None:
        self.hashes = hashes
        self.num_plain = num_plain

    def __len__(self) -> int:
        return len(self.hashes) + self.num_plain
