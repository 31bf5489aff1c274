"""The harness itself: sections of RESULTS.md, verdicts, slopes, rivals that are not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import MEASUREMENTS
from benchmarks.results import as_markdown, update
from benchmarks.row import Row, skipped
from benchmarks.settings import read_rivals
from benchmarks.soak import slope_per_hour


def test_a_section_is_replaced_and_what_stands_around_it_stays(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    update(file, "a", "first")
    update(file, "b", "other")
    file.write_text(file.read_text() + "\nwritten by hand\n")
    update(file, "a", r"second \1 with a backslash")
    text = file.read_text()
    assert "first" not in text and r"second \1 with a backslash" in text
    assert text.index("second") < text.index("other") < text.index("written by hand")


def test_rows_say_met_not_met_or_not_measured() -> None:
    rows = [
        Row(what="x | y", ours="1", bar="<= 2", is_met=True),
        Row(what="z", ours="3", bar="<= 2", is_met=False, notes=["a note"]),
        skipped("w", "<= 2", "no rival"),
    ]
    text = as_markdown("n", rows, "python -m benchmarks n")
    assert "| x / y | 1 | - | - | <= 2 | yes |" in text
    assert "| NO |" in text and "| not measured |" in text
    assert "- a note" in text and "- no rival" in text


def test_the_slope_is_that_of_the_last_two_thirds() -> None:
    warming = [(float(t), 100.0 - t) for t in range(10)]
    steady = [(float(t), 50.0 + 0.01 * t) for t in range(10, 30)]
    assert slope_per_hour(warming + steady) == pytest.approx(36.0)
    assert slope_per_hour([(0.0, 1.0)]) == 0.0


def test_a_rival_that_does_not_exist_is_told_at_once(tmp_path: Path) -> None:
    assert read_rivals({}).llama_server is None
    assert read_rivals({"LLAMA_BENCH": str(tmp_path)}).llama_bench == str(tmp_path)
    with pytest.raises(SystemExit, match="LLAMA_SERVER"):
        read_rivals({"LLAMA_SERVER": str(tmp_path / "none")})


def test_every_measurement_has_its_file() -> None:
    folder = Path(__file__).resolve().parent.parent.parent / "benchmarks"
    assert all((folder / f"{name}.py").exists() for name in MEASUREMENTS)
