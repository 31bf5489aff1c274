"""Which frontend and which engine a run gets, and why: from in=/out= if given, else by terminal and by model.

Owns the words of in= and out= and the messages for those that are unknown or not built. Starts nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from model_cards.card import ModelCard
from runner.config_file import Settings, did_you_mean
from runner.engines import ALIASES, ENGINE_FLAGS, ENGINES, EngineEntry
from runner.errors import UsageError
from runner.frontends import FRONTENDS, NOT_BUILT

ENTRY_POINTS = "llmrun.engines"
_FRONTEND_ARGUMENTS = {"batch": "FILE.jsonl", "dyn": "//namespace.component.endpoint"}
_BY_KIND = {"gguf": "llamacpp", "hf": "native", "trtllm": "trtllm"}
_KIND_NAMES = {"gguf": "a GGUF file", "hf": "a Hugging Face folder", "trtllm": "a TensorRT-LLM engine", "none": "none"}


class FrontendChoice(NamedTuple):
    """`in=NAME:ARGUMENT` and the reason for it."""

    name: str
    argument: str
    why: str


class EngineChoice(NamedTuple):
    """`out=NAME:ARGUMENT`, its row of the table, and the reason for it."""

    entry: EngineEntry
    argument: str
    why: str


def choose_frontend(
    source: str | None, *, terminal: bool, has_prompt: bool = False, follower: bool = False
) -> FrontendChoice:
    """The frontend. `terminal`: a person is at both ends; `follower`: this is not node 0 of several.

    Raises UsageError for a word that is unknown, not built, or lacks its argument.
    """
    if source is not None:
        return _named_frontend(source)
    if follower:
        return FrontendChoice("none", "", "node 0 has the frontend")
    if has_prompt:
        return FrontendChoice("stdin", "", "PROMPT is given: one answer")
    if terminal:
        return FrontendChoice("text", "", "this is a terminal")
    return FrontendChoice("stdin", "", "stdin is not a terminal")


def _named_frontend(source: str) -> FrontendChoice:
    name, _, argument = source.partition(":")
    needs = _FRONTEND_ARGUMENTS.get(name)
    if name in NOT_BUILT:
        raise UsageError(f"in={name} is not built yet; instead: {NOT_BUILT[name]}")
    if name not in FRONTENDS:
        allowed = ", ".join([*FRONTENDS, *NOT_BUILT])
        raise UsageError(f"unknown in={name}{did_you_mean(name, [*FRONTENDS, *NOT_BUILT])}; allowed: {allowed}")
    if needs and not argument:
        raise UsageError(f"in={name} needs {_what(needs)}: in={name}:{needs}")
    if argument and not needs:
        raise UsageError(f"in={name} takes nothing after a colon; got {argument!r}")
    return FrontendChoice(name, argument, "asked for")


def _what(argument: str) -> str:
    return "a file" if argument.startswith("FILE") else "an address"


def name_engine(target: str) -> EngineChoice:
    """The engine that out=TARGET names. Raises UsageError for one that is unknown, not built or lacks its argument."""
    name, _, argument = target.partition(":")
    entry = ENGINES.get(ALIASES.get(name, name)) or _third_party(name)
    if entry is None:
        known = [*ENGINES, *_third_party_names()]
        raise UsageError(f"unknown out={name}{did_you_mean(name, [*known, *ALIASES])}; allowed: {', '.join(known)}")
    if not entry.factory:
        raise UsageError(f"out={entry.name} ({entry.summary}) is not built yet; instead: {entry.instead}")
    if entry.takes_argument and not argument and not entry.takes_argument.startswith("["):
        raise UsageError(f"out={entry.name} needs an argument: out={entry.name}:{entry.takes_argument}")
    if argument and not entry.takes_argument:
        raise UsageError(f"out={entry.name} takes nothing after a colon; got {argument!r}")
    return EngineChoice(entry, argument, "asked for")


def engine_for(card: ModelCard) -> EngineChoice:
    """The engine for what the model is. Raises UsageError where none is built."""
    entry = ENGINES.get(_BY_KIND.get(card.kind, ""))
    if entry is None:
        raise UsageError(f"{card.name} has no weights on this machine; name an engine, such as out=echo_full")
    kind = _KIND_NAMES[card.kind]
    if not entry.factory:
        raise UsageError(
            f"{card.source} is {kind}, which is what out={entry.name} is for, and that is not built yet; "
            f"instead: {entry.instead}, such as the Hub id of a GGUF conversion of the same model"
        )
    return EngineChoice(entry, "", f"the model is {kind}")


def check_fit(choice: EngineChoice, card: ModelCard) -> None:
    """Raises UsageError if the engine cannot run this kind of model."""
    models = choice.entry.models
    if card.kind in models or models == ("none",):
        return
    wanted = " or ".join(_KIND_NAMES[kind] for kind in models if kind != "none")
    fitting = [e.name for e in ENGINES.values() if e.factory and card.kind in e.models and e.level == "tokens"]
    instead = f"; engines for {_KIND_NAMES[card.kind]}: {', '.join(fitting)}" if fitting and card.kind != "none" else ""
    raise UsageError(
        f"out={choice.entry.name} runs {wanted}; {card.source or card.name} is {_KIND_NAMES[card.kind]}{instead}"
    )


def check_flags(choice: EngineChoice, settings: Settings) -> None:
    """Raises UsageError for a flag that the engine does not know: nothing that was asked for is dropped."""
    for key in ENGINE_FLAGS:
        if settings.values.get(key) not in (None, False) and key not in choice.entry.flags:
            knowing = ", ".join(
                f"out={name}" for name, entry in ENGINES.items() if entry.factory and key in entry.flags
            )
            flag = key.replace("_", "-")
            raise UsageError(f"out={choice.entry.name} does not know --{flag}; leave it out (it is for {knowing})")


def _third_party_names() -> list[str]:
    return sorted({point.name for point in _entry_points()})


def _entry_points(**names: str) -> Any:
    from importlib import metadata  # 10 ms that only unknown names pay

    return metadata.entry_points(group=ENTRY_POINTS, **names)  # type: ignore[call-overload]


def _third_party(name: str) -> EngineEntry | None:
    """An engine of another package: the entry point is an EngineEntry, or a factory `make_engine(spec)`."""
    for point in _entry_points(name=name):
        try:
            loaded = point.load()
        except Exception as error:  # somebody else's package may fail in any way; only this name is broken
            raise UsageError(f"out={name}: the package that offers it cannot be loaded: {error!r}") from error
        if isinstance(loaded, EngineEntry):
            return loaded
        distribution = point.dist.name if point.dist else "another package"
        models = ("gguf", "hf", "trtllm")
        return EngineEntry(name=name, summary=f"from {distribution}", factory=point.value, models=models)
    return None
