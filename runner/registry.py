"""Lookup by name, import on use: tables of "module:attr" strings. Knows nothing of what it loads."""

from __future__ import annotations

import importlib
from typing import Any


def load(reference: str) -> Any:
    """Import `module:attr` and return the attribute. Raises ImportError or AttributeError of that module."""
    module_name, _, attr = reference.partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, attr)
