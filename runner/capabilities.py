"""Honoured or refused: what a request asks for against what its engine declares.

Nothing is dropped in silence: a field that the engine cannot honour is refused by name, or, with `--lenient`, left out
and reported. Knows no engine; reads EngineInfo.capabilities only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from runner.errors import UnsupportedField
from runner.types import EngineInfo, SamplingParams

REQUEST_NAMES = {"bad_words_ids": "bad_words"}
"""Fields that have another name in requests than in SamplingParams."""
_NEUTRAL = SamplingParams()
GUIDED_KINDS = ("json_schema", "json_object", "regex", "grammar", "choice")


class Capabilities:
    """The declared capabilities of one engine, ready to be asked once a request."""

    def __init__(self, info: EngineInfo) -> None:
        self.engine = info.name
        self._names = frozenset(info.capabilities)
        fields = [field for field in SamplingParams.__struct_fields__ if field != "guided"]
        self._missing = tuple(field for field in fields if field not in self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def split_defaults(self, defaults: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """A card's sampling defaults: those that the engine honours, and the names of those it does not."""
        unknown = [name for name in defaults if name in self._missing and defaults[name] != getattr(_NEUTRAL, name)]
        return {name: value for name, value in defaults.items() if name not in unknown}, unknown

    def check_sampling(self, sampling: SamplingParams, report: Callable[[str, Any], None]) -> SamplingParams:
        """Sampling that the engine honours; `report(field, value)` hears of each field that it does not."""
        dropped: dict[str, Any] = {}
        for field in self._missing:
            value = getattr(sampling, field)
            if value != getattr(_NEUTRAL, field):
                report(REQUEST_NAMES.get(field, field), value)
                dropped[field] = getattr(_NEUTRAL, field)
        if sampling.guided is not None:
            kind = next(kind for kind in GUIDED_KINDS if getattr(sampling.guided, kind) is not None)
            if f"guided.{kind}" not in self._names:
                report(f"guided.{kind}", getattr(sampling.guided, kind))
                dropped["guided"] = None
        return msgspec.structs.replace(sampling, **dropped) if dropped else sampling

    def check_min_tokens(self, min_tokens: int, report: Callable[[str, Any], None]) -> int:
        """min_tokens, or 0 after a report."""
        if min_tokens and "min_tokens" not in self._names:
            report("min_tokens", min_tokens)
            return 0
        return min_tokens

    def check_adapter(self, adapter: str | None, report: Callable[[str, Any], None]) -> str | None:
        """The adapter's name, or None after a report."""
        if adapter is None or "adapter" in self._names or f"adapter:{adapter}" in self._names:
            return adapter
        report("adapter", adapter)
        return None

    def adapters(self) -> list[str]:
        """Names of the adapters that are loaded."""
        return sorted(name.removeprefix("adapter:") for name in self._names if name.startswith("adapter:"))


class Reporter:
    """What to do with a field that is not honoured: refuse the request, or collect a warning (`lenient`)."""

    def __init__(self, capabilities: Capabilities, *, lenient: bool) -> None:
        self._capabilities = capabilities
        self._lenient = lenient
        self.warnings: list[str] = []

    def __call__(self, field: str, value: Any) -> None:
        message = f"engine {self._capabilities.engine!r} does not honour {field} (asked: {_brief(value)})"
        if field == "adapter":
            message += f"; loaded adapters: {', '.join(self._capabilities.adapters()) or 'none'}"
        self._settle(field, message, "leave it out, choose another engine, or use --lenient")

    def unread(self, field: str) -> None:
        """A field that the model's chat template never looks at."""
        message = f"the chat template of this model has no place for {field}: the model would not see them"
        self._settle(field, message, "leave them out, give a --chat-template that reads them, or use --lenient")

    def _settle(self, field: str, message: str, advice: str) -> None:
        if not self._lenient:
            raise UnsupportedField(f"{message}; {advice}", field=field)
        self.warnings.append(f"{message}; left out")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
