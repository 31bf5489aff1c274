"""The size of runner/engines/native without kernels/: all lines, those that are code, and the longest file.

Code is what is neither blank nor a comment, a docstring or an import.
"""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks.row import Row
from benchmarks.settings import Settings
from runner.engines import native

BAR = 4500
BAR_FILE = 400


def measure(settings: Settings) -> list[Row]:
    """Counts, no times."""
    folder = Path(native.__file__).parent
    texts = {path: path.read_text() for path in folder.rglob("*.py")}
    ours = {path: text for path, text in texts.items() if "kernels" not in path.relative_to(folder).parts}
    num_lines = sum(_num_lines(text) for text in ours.values())
    num_code = sum(num_code_lines(text) for text in ours.values())
    longest = max(_num_lines(text) for text in texts.values())
    return [
        _row(f"all lines of native/ without kernels, {len(ours)} files", num_lines, BAR),
        _row("... without blanks, comments, docstrings and imports", num_code, BAR),
        _row("longest file, kernels too", longest, BAR_FILE),
    ]


def _row(what: str, count: int, bar: int) -> Row:
    return Row(what=what, ours=f"{count:,} lines", bar=f"<= {bar:,}", is_met=count <= bar)


def _num_lines(text: str) -> int:
    return len(text.splitlines())


def num_code_lines(text: str) -> int:
    """Of a Python file; a string by itself counts as a docstring."""
    other: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_string = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_string or isinstance(node, ast.Import | ast.ImportFrom):
            assert isinstance(node, ast.stmt)
            other.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = [line.strip() for line in text.splitlines()]
    return sum(bool(line) and not line.startswith("#") and at not in other for at, line in enumerate(lines, 1))
