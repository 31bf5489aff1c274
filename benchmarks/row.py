"""One row of the results: what was measured, ours, the rival's, the bar, and whether it is met. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """`ratio` is what `bar` speaks of; `is_met` is None where there was nothing to compare with."""

    what: str
    ours: str
    bar: str
    is_met: bool | None
    rival: str = ""
    ratio: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`yes`, `NO` or `not measured`."""
        return {True: "yes", False: "NO", None: "not measured"}[self.is_met]


def skipped(what: str, bar: str, reason: str) -> Row:
    """A row that could not be measured here, and why."""
    return Row(what=what, ours="-", bar=bar, is_met=None, notes=[reason])
