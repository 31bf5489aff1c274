"""A tokenizer.json in which added tokens have plain names, so that mistral.rs tells them like all others.

mistral.rs hides every token that is marked special, or whose name stands in angle brackets (`<tool_call>`, `<think>`).
Ids stay as they are, and so do the names of tokens that end or begin a text: mistral.rs looks for them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any


def plain_name(token: int) -> str:
    """Of letters that every vocabulary has."""
    return f"[[token {token}]]"


def write_plain(source: Path, target: Path, kept_ids: Collection[int], kept_names: Collection[str]) -> dict[int, bytes]:
    """Write `target`; what was renamed, id -> new name as bytes. Raises OSError, ValueError."""
    text = source.read_text(encoding="utf-8")
    added: list[dict[str, Any]] = json.loads(text).get("added_tokens") or []
    renamed = [one for one in added if one["id"] not in kept_ids and one["content"] not in kept_names]
    names = {one["content"]: plain_name(one["id"]) for one in renamed}
    data = _rename(json.loads(text), names)
    for one in data.get("added_tokens") or []:
        if one["content"] in names.values():
            one["special"] = False
    target.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return {int(one["id"]): plain_name(one["id"]).encode() for one in renamed}


def _rename(value: Any, names: dict[str, str]) -> Any:
    """Every string and key that is one of the names, wherever it stands (vocabulary, added tokens, post-processor)."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [_rename(one, names) for one in value]
    if isinstance(value, dict):
        return {names.get(key, key): _rename(one, names) for key, one in value.items()}
    return value
