"""Stop strings: found wherever they begin, and never leaked in part.

Owns the search (Aho and Corasick, CACM 18(6), 1975) and the holding back of text that may become a stop string. Knows
neither tokens nor requests. The result does not depend on how the text was cut into pieces:

    emitted | held back (longest tail that begins some stop string) | not yet produced
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

MAX_STOP_STRINGS = 1024
"""More in one request are refused (OpenAI allows 4)."""
MAX_STOP_CHARS = 16_384
"""All stop strings of one request together."""


class StopStrings:
    """Searches for all stop strings at once: one table, shared by all choices of a request.

    The match that is complete first wins; of two that end at the same character, the longer one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "empty stop strings are refused before"
        self.edges: list[dict[str, int]] = [{}]
        self.depths: list[int] = [0]
        self.found: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self.fallbacks = self._link()
        self.first_chars = re.compile("[" + "".join(re.escape(char) for char in self.edges[0]) + "]")

    def _add(self, stop: str) -> None:
        node = 0
        for char in stop:
            child = self.edges[node].get(char)
            if child is None:
                child = len(self.edges)
                self.edges[node][char] = child
                self.edges.append({})
                self.depths.append(self.depths[node] + 1)
                self.found.append(None)
            node = child
        self.found[node] = stop

    def _link(self) -> list[int]:
        """For each node, the node of its longest proper tail; a node also finds what that one finds."""
        fallbacks = [0] * len(self.edges)
        queue = deque(self.edges[0].values())
        while queue:
            node = queue.popleft()
            for char, child in self.edges[node].items():
                fallback = self._step(fallbacks, fallbacks[node], char)
                fallbacks[child] = fallback
                if self.found[child] is None:
                    self.found[child] = self.found[fallback]
                queue.append(child)
        return fallbacks

    def _step(self, fallbacks: list[int], node: int, char: str) -> int:
        while node and char not in self.edges[node]:
            node = fallbacks[node]
        return self.edges[node].get(char, 0)

    def step(self, node: int, char: str) -> int:
        """The node after one more character."""
        return self._step(self.fallbacks, node, char)


class StopMatcher:
    """Follows the text of one choice. `found` is the stop string once there is one; then push nothing more."""

    __slots__ = ("_held", "_include", "_node", "_strings", "found")

    def __init__(self, strings: StopStrings, *, include: bool = False) -> None:
        self._strings = strings
        self._include = include
        self._node = 0
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; returns what can be shown now. After a match: all that stands before it (or with it)."""
        strings = self._strings
        if not self._node and strings.first_chars.search(text) is None:
            return text
        end = self._search(text)
        if self.found is not None:
            text = self._held + text[:end]
            return text if self._include else text[: len(text) - len(self.found)]
        text = self._held + text
        visible = len(text) - strings.depths[self._node]
        self._held = text[visible:]
        return text[:visible]

    def _search(self, text: str) -> int:
        """Walk the table over the text; returns where a match ended, else the text's length."""
        strings = self._strings
        found, first_chars = strings.found, strings.first_chars
        node, position = self._node, 0
        while position < len(text):
            if not node:
                candidate = first_chars.search(text, position)
                if candidate is None:
                    break
                position = candidate.start()
            node = strings.step(node, text[position])
            position += 1
            if found[node] is not None:
                self.found = found[node]
                return position
        self._node = node
        return len(text)

    @property
    def held_len(self) -> int:
        """Characters that are held back now."""
        return len(self._held)

    def flush(self) -> str:
        """The text ends here: what was held back is no stop string."""
        held, self._held, self._node = self._held, "", 0
        return held
