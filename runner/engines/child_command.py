"""What --dry-run shows of an engine that has no program of its own: our child's command, and its settings in its words.

The settings go to the child over its socket at the start, so the line is for reading, not for a shell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def child_command(python: str, child: str, settings: Mapping[str, Any]) -> list[str]:
    """`python -m runner.engines.child MODULE:CLASS name=value ...`; what is None is not shown."""
    said = [f"{name}={_text(value)}" for name, value in settings.items() if value is not None]
    return [python, "-m", "runner.engines.child", child, *said]


def changed(settings: msgspec.Struct) -> dict[str, Any]:
    """The fields that are not their defaults."""
    return {
        field.name: value
        for field in msgspec.structs.fields(type(settings))
        if (value := getattr(settings, field.name)) != field.default
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
