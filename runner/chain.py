"""Chain: the engines of `out=A,B` in order, and why some of them were passed over.

Owns splitting the word and the sentence for a chain of which nothing is left. Starts nothing; what an engine can do is
selection.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from runner.engines import ALIASES, ENGINES
from runner.errors import UsageError
from runner.selection import EngineChoice, name_engine


class PassedOver(msgspec.Struct, frozen=True):
    """An engine of a chain that cannot serve, and the reason in one line."""

    name: str
    why: str


class Chain(msgspec.Struct, frozen=True):
    """What is left of a chain, in the order in which it is tried; never empty."""

    choices: tuple[EngineChoice, ...]
    passed: tuple[PassedOver, ...] = ()

    def keep(self, check: Callable[[EngineChoice], object]) -> Chain:
        """Those for which `check` raises no UsageError. Raises it where only one engine was named, and one with
        every reason where none is left.
        """
        kept: list[EngineChoice] = []
        passed = list(self.passed)
        for choice in self.choices:
            try:
                check(choice)
            except UsageError as error:
                if len(self.choices) == 1 and not self.passed:
                    raise
                passed.append(PassedOver(choice.entry.name, brief(error, choice.entry.name)))
            else:
                kept.append(choice)
        if not kept:
            raise UsageError(sentence(passed))
        return Chain(tuple(kept), tuple(passed))


def name_chain(target: str) -> Chain:
    """The engines that out=TARGET names. Raises UsageError for an unknown word, and for one that is not built and has
    nothing after it.
    """
    words = split_target(target)
    twice = next((word for at, word in enumerate(words) if word in words[:at]), None)
    if twice is not None:
        raise UsageError(f"out={target} names {twice} twice; name each engine once")
    choices: list[EngineChoice] = []
    passed: list[PassedOver] = []
    for word in words:
        entry = ENGINES.get(_name(word))
        if len(words) > 1 and entry is not None and not entry.factory:
            passed.append(PassedOver(entry.name, "it is not built yet"))
        else:
            choices.append(name_engine(word))
    if not choices:
        raise UsageError(sentence(passed))
    return Chain(tuple(choices), tuple(passed))


def split_target(target: str) -> list[str]:
    """`vllm,llamacpp` -> both; a comma in an argument (`pystr:a,b.py`) splits only before the name of an engine."""
    words: list[str] = []
    for part in target.split(","):
        if words and ":" in words[-1] and _name(part) not in ENGINES:
            words[-1] += f",{part}"
        else:
            words.append(part)
    return words


def sentence(passed: Iterable[PassedOver]) -> str:
    """One error for all that failed."""
    return "\n".join(["none of the engines can serve this:", *(f"  out={row.name}: {row.why}" for row in passed)])


def brief(error: Exception, name: str) -> str:
    """What is wrong with engine `name`, in one line: the error's first line and, where it is known, the next step."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    for opening in (f"out={name}: ", f"out={name} ", f"the engine {name} "):
        first = first.removeprefix(opening)
    hint = getattr(error, "hint", "")
    return f"{first} ({hint})" if hint and hint not in first else first


def _name(word: str) -> str:
    name = word.partition(":")[0]
    return ALIASES.get(name, name)
