"""BlockLog: what changed in an engine's prefix cache, until somebody fetches it. Off until somebody wants to know.

Owns the order of changes, not the blocks: those are the engine's pool's. Runs on Python 3.10 with msgspec alone.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class BlockEvent(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One change. `keys` are the engine's own names of blocks: equal keys, equal tokens from the start of the prompt.

    Of `stored`: each block continues the one before, the first continues `parent` (empty: it begins a prompt), and
    `token_ids` [len(keys) * block size] are theirs.
    """

    kind: Literal["stored", "removed", "cleared"]
    keys: tuple[bytes, ...] = ()
    parent: bytes = b""
    token_ids: list[int] = []


class BlockLog:
    """Call `stored` and `removed` in the order of events. Cheap while off."""

    def __init__(self) -> None:
        self.is_on = False
        self._events: list[BlockEvent] = []
        self._removed: list[bytes] = []

    def start(self) -> None:
        """From now on; what was cached before is not told."""
        self.is_on = True
        self._removed.clear()
        self._events[:] = [BlockEvent("cleared")]

    def stored(self, keys: list[bytes], parent: bytes, token_ids: list[int]) -> None:
        """Others may share these blocks from now on."""
        if self.is_on and keys:
            self._end_removed()
            self._events.append(BlockEvent("stored", tuple(keys), parent, token_ids))

    def removed(self, key: bytes) -> None:
        """Its block is used for something else."""
        if self.is_on:
            self._removed.append(key)

    def take(self) -> list[BlockEvent]:
        """What has happened since the last time."""
        self._end_removed()
        events, self._events = self._events, []
        return events

    def _end_removed(self) -> None:
        if self._removed:
            self._events.append(BlockEvent("removed", tuple(self._removed)))
            self._removed = []
