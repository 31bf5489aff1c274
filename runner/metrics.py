"""Counters, gauges and histograms in Prometheus text form: cheap to count, and plain data to add up over processes.

Owns the families, their snapshot, the sum of several snapshots and the text format
(https://prometheus.io/docs/instrumenting/exposition_formats/). Not thread-safe: one event loop counts.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]


class Value:
    """One counter or gauge of a family."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Count up (a gauge also down)."""
        self.value += amount

    def set(self, value: float) -> None:
        """Gauges only."""
        self.value = value


class Buckets:
    """One histogram of a family; `counts` has one more entry than there are bounds, for what is above all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or the same value several times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class FamilySnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A family at one moment. A sample is (label values, [value]) or (label values, [*bucket counts, total])."""

    name: str
    kind: Kind
    help: str
    labels: Labels
    bounds: tuple[float, ...] = ()
    samples: list[tuple[Labels, list[float]]] = []


class Counters:
    """A family of counters or gauges."""

    def __init__(self, name: str, kind: Kind, help_text: str, labels: Labels) -> None:
        self.name, self.kind, self.help, self.labels = name, kind, help_text, labels
        self._children: dict[Labels, Value] = {}

    def of(self, *values: str) -> Value:
        """The member with these label values."""
        child = self._children.get(values)
        if child is None:
            assert len(values) == len(self.labels), f"{self.name} has the labels {self.labels}"
            child = self._children[values] = Value()
        return child

    def snapshot(self) -> FamilySnapshot:
        """Now."""
        samples = [(labels, [child.value]) for labels, child in self._children.items()]
        return FamilySnapshot(name=self.name, kind=self.kind, help=self.help, labels=self.labels, samples=samples)


class Histograms:
    """A family of histograms."""

    def __init__(self, name: str, help_text: str, labels: Labels, bounds: Iterable[float]) -> None:
        self.name, self.help, self.labels, self.bounds = name, help_text, labels, tuple(bounds)
        self._children: dict[Labels, Buckets] = {}

    def of(self, *values: str) -> Buckets:
        """The member with these label values."""
        child = self._children.get(values)
        if child is None:
            assert len(values) == len(self.labels), f"{self.name} has the labels {self.labels}"
            child = self._children[values] = Buckets(self.bounds)
        return child

    def snapshot(self) -> FamilySnapshot:
        """Now."""
        return FamilySnapshot(
            name=self.name,
            kind="histogram",
            help=self.help,
            labels=self.labels,
            bounds=self.bounds,
            samples=[(labels, [*child.counts, child.total]) for labels, child in self._children.items()],
        )


class Registry:
    """All families of one process."""

    def __init__(self) -> None:
        self._families: list[Counters | Histograms] = []

    def counter(self, name: str, help_text: str, *labels: str) -> Counters:
        """A new family of counters; by convention the name ends in `_total`."""
        return self._add(Counters(name, "counter", help_text, labels))

    def gauge(self, name: str, help_text: str, *labels: str) -> Counters:
        """A new family of gauges."""
        return self._add(Counters(name, "gauge", help_text, labels))

    def histogram(self, name: str, help_text: str, bounds: Iterable[float], *labels: str) -> Histograms:
        """A new family of histograms with these upper bounds, ascending."""
        family = Histograms(name, help_text, labels, bounds)
        self._families.append(family)
        return family

    def _add(self, family: Counters) -> Counters:
        self._families.append(family)
        return family

    def snapshot(self) -> list[FamilySnapshot]:
        """All families now."""
        return [family.snapshot() for family in self._families]


def add_up(snapshots: Iterable[list[FamilySnapshot]]) -> list[FamilySnapshot]:
    """The sum over several processes, sample by sample."""
    families: dict[str, FamilySnapshot] = {}
    sums: dict[str, dict[Labels, list[float]]] = {}
    for snapshot in snapshots:
        for family in snapshot:
            families.setdefault(family.name, family)
            mine = sums.setdefault(family.name, {})
            for labels, numbers in family.samples:
                old = mine.get(labels)
                mine[labels] = numbers if old is None else [a + b for a, b in zip(old, numbers, strict=True)]
    return [msgspec.structs.replace(families[name], samples=list(sums[name].items())) for name in families]


def render(snapshot: Iterable[FamilySnapshot]) -> str:
    """Prometheus text format 0.0.4."""
    lines: list[str] = []
    for family in snapshot:
        lines += [f"# HELP {family.name} {_escape_help(family.help)}", f"# TYPE {family.name} {family.kind}"]
        for values, numbers in sorted(family.samples):
            labels = dict(zip(family.labels, values, strict=True))
            if family.kind == "histogram":
                lines += _histogram_lines(family, labels, numbers)
            else:
                lines.append(f"{family.name}{_labels(labels)} {_number(numbers[0])}")
    return "\n".join(lines) + "\n"


def _histogram_lines(family: FamilySnapshot, labels: Mapping[str, str], numbers: list[float]) -> list[str]:
    *counts, total = numbers
    lines: list[str] = []
    so_far = 0.0
    for bound, count in zip((*family.bounds, math.inf), counts, strict=True):
        so_far += count
        lines.append(f"{family.name}_bucket{_labels({**labels, 'le': _number(bound)})} {_number(so_far)}")
    lines.append(f"{family.name}_sum{_labels(labels)} {_number(total)}")
    lines.append(f"{family.name}_count{_labels(labels)} {_number(so_far)}")
    return lines


def _labels(labels: Mapping[str, Any]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(str(value))}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
