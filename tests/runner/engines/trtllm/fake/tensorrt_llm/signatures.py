"""Classes with the parameters of TensorRT-LLM's own, made of signatures.json; an unknown one is an error, as there."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

TABLE: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("signatures.json").read_text())
REQUIRED = "REQUIRED"


def signature_of(name: str, renames: dict[str, str] | None = None) -> inspect.Signature:
    names = {key: (renames or {}).get(key, key) for key in TABLE[name]}
    kind = inspect.Parameter
    needed = [kind(names[key], kind.POSITIONAL_OR_KEYWORD) for key, value in TABLE[name].items() if value == REQUIRED]
    others = [
        kind(names[key], kind.KEYWORD_ONLY, default=value) for key, value in TABLE[name].items() if value != REQUIRED
    ]
    return inspect.Signature([*needed, *others])


def record(name: str, renames: dict[str, str] | None = None) -> type:
    """A class whose constructor has that signature; values are attributes under their names of today."""
    signature = signature_of(name, renames)
    back = {new: old for old, new in (renames or {}).items()}

    def make(self: Any, **given: Any) -> None:
        bound = signature.bind(**given)
        bound.apply_defaults()
        for key, value in bound.arguments.items():
            setattr(self, back.get(key, key), value)

    made = type(name, (), {"__init__": make})
    made.__signature__ = signature  # type: ignore[attr-defined]
    return made
