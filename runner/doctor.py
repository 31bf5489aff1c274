"""`llmrun doctor [--json]`: what this machine has and lacks, each with the next step; doctor_checks.py looks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from runner.console import style
from runner.doctor_checks import CHECKS, Check

_MARKS = {"ok": ("ok  ", "32"), "warn": ("warn", "33")}


def run(*, as_json: bool = False, checks: Sequence[Callable[[], list[Check]]] = CHECKS) -> int:
    """Print every check to stdout; returns 0: a warning is not a failure of this command."""
    found = [check for look in checks for check in _look(look)]
    text = json.dumps([check._asdict() for check in found], indent=2, ensure_ascii=False) if as_json else _table(found)
    sys.stdout.write(f"{text}\n")
    return 0


def _look(look: Callable[[], list[Check]]) -> list[Check]:
    """One check that fails must not hide the others."""
    try:
        return look()
    except Exception as error:  # a doctor never crashes; the failure is the finding
        name = look.__name__.removeprefix("check_")
        detail = f"cannot be found out: {type(error).__name__}: {error}"
        return [Check(name, "warn", detail, "this is a bug of llmrun; please report it")]


def _table(found: list[Check]) -> str:
    width = max(len(check.name) for check in found)
    rows = []
    for check in found:
        mark, code = _MARKS[check.status]
        rows.append(f"{style(mark, code, sys.stdout)}  {check.name:<{width}}  {check.detail}")
        if check.next_step:
            rows.append(f"{'':<{width + 6}}  {style('→ ' + check.next_step, '2', sys.stdout)}")
    return "\n".join(rows)
