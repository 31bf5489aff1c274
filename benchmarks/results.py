"""Writing rows: to the terminal, and into the section of RESULTS.md that belongs to each measurement.

Each section stands between markers and is replaced as a whole; what people write between sections stays.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.row import Row
from runner.bench.report import machine


def as_markdown(name: str, rows: Sequence[Row], command: str) -> str:
    """One section: heading, machine and command, table, notes."""
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [f"### {name}", "", f"`{command}` on {day}; {about}", ""]
    lines += ["| what | ours | rival | ratio | bar | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row.what, row.ours, row.rival or "-", row.ratio or "-", row.bar, row.verdict)
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    notes = [f"- {note}" for row in rows for note in row.notes]
    return "\n".join([*lines, "", *notes, ""] if notes else [*lines, ""])


def update(path: Path, name: str, section: str) -> None:
    """Replace the section between its markers, or append it."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{begin}\n{section}\n{end}"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    text = pattern.sub(lambda _: block, text) if pattern.search(text) else f"{text.rstrip()}\n\n{block}\n"
    path.write_text(text, encoding="utf-8")


def show(name: str, rows: Sequence[Row]) -> None:
    """Rows for the terminal."""
    for row in rows:
        rival = f"  against {row.rival}" if row.rival else ""
        ratio = f"  = {row.ratio}" if row.ratio else ""
        print(f"{name}: {row.what}: {row.ours}{rival}{ratio}  [{row.bar}: {row.verdict}]")
        for note in row.notes:
            print(f"    {note}")
    sys.stdout.flush()
