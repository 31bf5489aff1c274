"""Curated models by alias: one JSON file an alias.

    {"source": "org/repo:QUANT" or "demo/…", "about": "one line", "card": {fields that override the card's}}

`demo` and `demo-hf` are the bundled model (the folder demo/). Knows nothing of how a source is resolved.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec

from model_cards.errors import ModelFileError

_FOLDER = Path(__file__).parent


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands behind an alias."""

    source: str
    about: str = ""
    card: dict[str, Any] = {}


@functools.cache
def aliases() -> dict[str, Preset]:
    """All presets by alias. Raises ModelFileError where one is broken."""
    return {path.stem: _read(path) for path in sorted(_FOLDER.glob("*.json"), key=lambda path: path.stem)}


def _read(path: Path) -> Preset:
    try:
        preset = msgspec.json.decode(path.read_bytes(), type=Preset)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"the preset {path} is broken: {error}") from None
    beside = path.parent / preset.source
    return msgspec.structs.replace(preset, source=str(beside)) if preset.source.startswith("demo/") else preset
