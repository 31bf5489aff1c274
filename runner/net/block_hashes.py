"""Names of KV blocks as Dynamo makes them: xxh3_64, seed 1337, of little-endian u32 ids, chained from the start.

tokens hash   of a block's own tokens
block hash    of the first block: its tokens hash; of any other: of its parent's block hash | its tokens hash (u64le)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import xxhash

_SEED = 1337


def tokens_hashes(token_ids: Sequence[int], block_size: int) -> list[int]:
    """One for each full block."""
    data = np.asarray(token_ids, dtype="<u4").tobytes()
    size = 4 * block_size
    return [xxhash.xxh3_64_intdigest(data[at : at + size], _SEED) for at in range(0, len(data) - size + 1, size)]


def chain(parent: int | None, tokens_hash: int) -> int:
    """The block hash after `parent`; None: the prompt begins with it."""
    if parent is None:
        return tokens_hash
    return xxhash.xxh3_64_intdigest(parent.to_bytes(8, "little") + tokens_hash.to_bytes(8, "little"), _SEED)


def block_hashes(token_ids: Sequence[int], block_size: int) -> list[int]:
    """One for each full block of a prompt."""
    hashes: list[int] = []
    for one in tokens_hashes(token_ids, block_size):
        hashes.append(chain(hashes[-1] if hashes else None, one))
    return hashes


class BlockNames:
    """What one cache calls its blocks, to block hashes. A number that it has not been told stands for itself: many name
    their blocks as Dynamo does. Holds at most `max_names`; then all are forgotten."""

    def __init__(self, max_names: int) -> None:
        self._max_names = max_names
        self._hashes: dict[Hashable, int] = {}

    def stored(self, parent: Hashable | None, blocks: Iterable[tuple[Hashable, int]]) -> list[int]:
        """Block hashes of (name, tokens hash), each the child of the one before. None are known under a parent that is
        not."""
        at = None if parent is None else self.find(parent)
        if parent is not None and at is None:
            return []
        found = []
        for name, tokens_hash in blocks:
            at = chain(at, tokens_hash)
            found.append(at)
            if name != at:
                self._hashes[name] = at
        if len(self._hashes) > self._max_names:
            self._hashes.clear()
        return found

    def removed(self, names: Iterable[Hashable]) -> list[int]:
        """Block hashes of what is gone, as far as they are known."""
        found = ((name, self.find(name)) for name in names)
        known = [(name, one) for name, one in found if one is not None]
        for name, _ in known:
            self._hashes.pop(name, None)
        return [one for _, one in known]

    def find(self, name: Hashable) -> int | None:
        """The block hash of a name; None where it is not known."""
        return self._hashes.get(name, name if isinstance(name, int) and not self._hashes else None)

    def clear(self) -> None:
        """Forget all."""
        self._hashes.clear()
