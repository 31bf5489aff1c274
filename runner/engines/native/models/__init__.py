"""Model families, found by file name: the `model_type` of config.json, lower case, `-` as `_`.

A family file has `spec(config) -> DecoderSpec` and `names(config) -> Names`; perhaps `supports(config) -> bool` where
it runs only some of its kind, and a class `Model` with Decoder's interface for what a spec cannot say. Those that are
LLaMA under another name are listed here.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from types import ModuleType
from typing import Any

ALIASES = {
    "xverse": "llama", "aquila": "llama", "yi": "llama", "code_llama": "llama", "vicuna": "llama",
    "gemma3": "gemma3_text", "baichuan2": "baichuan",
}  # fmt: skip


def find_family(config: dict[str, Any]) -> ModuleType | None:
    """The module for a config.json, None where there is none (models/_transformers.py may run it)."""
    name = str(config.get("model_type", "")).lower().replace("-", "_")
    name = ALIASES.get(name, name)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or importlib.util.find_spec(f"{__name__}.{name}") is None:
        return None
    family = importlib.import_module(f"{__name__}.{name}")
    return family if getattr(family, "supports", lambda _: True)(config) else None
