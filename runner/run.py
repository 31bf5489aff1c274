"""One run from the command line's words: settings, words, card, plan; then launch, or print the plan.

Owns the order of these steps and the one line on stderr that says what was chosen. Parses no flags itself.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from model_cards.card import ModelCard
from runner import log
from runner.config_file import Settings, merge
from runner.console import say
from runner.download_bars import DownloadBars
from runner.errors import UsageError
from runner.help import command_names
from runner.options import RunOptions
from runner.plan import Plan, as_data, as_text, make_plan
from runner.words import Words, looks_like_model, parse_words


def run_words(words: Sequence[str], given: dict[str, Any], tail: tuple[str, ...]) -> int:
    """Run what the command line asks for; returns the exit code. Raises LlmrunError and CardError."""
    settings = merge(given, os.environ)
    log.set_up(int(settings.values.get("verbose", 0)))  # type: ignore[arg-type]
    parsed = _parse(words, settings)
    dry_run = bool(settings.values.get("dry_run"))
    if settings.values.get("json") and not dry_run:
        raise UsageError("--json goes with --dry-run (or with show, ls, engines, doctor)")
    terminal = _is_terminal(sys.stdin) and _is_terminal(sys.stdout)

    def resolve(source: str, options: RunOptions) -> ModelCard:
        return find_card(source, options, download=not dry_run)

    plan = make_plan(settings, parsed, tail, terminal=terminal, resolve=resolve)
    if dry_run:
        from runner.launch import settle

        _print_plan(settle(plan), as_json=bool(settings.values.get("json")))
        return 0
    _say_choice(plan)
    from runner.launch import run

    return run(plan)


def find_card(source: str, options: RunOptions, *, download: bool = True) -> ModelCard:
    """The card of what the user named. Raises CardError.

    --context-length is not passed: it is the engine's option, and the card goes on saying what the model was made for.
    """
    from model_cards.resolve import resolve

    with DownloadBars() as bars:
        return resolve(
            source,
            name=options.model_name,
            model_config=options.model_config,
            chat_template=options.chat_template,
            download=download,
            progress=bars.update,
        )


def preset_aliases() -> tuple[str, ...]:
    """Names of the curated cards."""
    from model_cards.presets import aliases

    return tuple(aliases())


def _parse(words: Sequence[str], settings: Settings) -> Words:
    model_path = settings.values.get("model_path")
    aliases = preset_aliases()
    _refuse_typo(words, aliases)
    parsed = parse_words(words, aliases=aliases, model_path=model_path if isinstance(model_path, str) else None)
    for side, word in (("in", parsed.source), ("out", parsed.target)):
        spelled = settings.values.get(side)
        by_flag = settings.sources.get(side, "").startswith("--")
        if word is not None and by_flag and spelled != word:
            raise UsageError(f"{side}= is given twice: {side}={word} and --{side} {spelled}")
    return parsed


def _refuse_typo(words: Sequence[str], aliases: Sequence[str]) -> None:
    """A lone word that is nearly a command or an alias is a slip, not a prompt."""
    plain = [word for word in words if not word.startswith(("in=", "out="))]
    if not plain or looks_like_model(plain[0], aliases):
        return
    if plain[0] in command_names():
        raise UsageError(f"put the command first: llmrun {plain[0]} …")
    near = difflib.get_close_matches(plain[0], [*command_names(), *aliases], n=1, cutoff=0.8)
    if near and len(plain) == 1:
        raise UsageError(
            f"{plain[0]!r} is neither a model nor a command; did you mean `llmrun {near[0]}`? "
            f'To ask the demo model: llmrun demo "{plain[0]}"'
        )


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and bool(stream.isatty())


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    text = json.dumps(as_data(plan), indent=2, ensure_ascii=False) if as_json else as_text(plan)
    sys.stdout.write(f"{text}\n")


def _say_choice(plan: Plan) -> None:
    """One line for what was chosen without being asked for."""
    chosen = {"model": plan.card.name, "engine": f"out={plan.engine.name}"}
    said = [
        f"{chosen[key]} ({plan.why[key]})"
        for key in chosen
        if plan.why[key] != "asked for" and (key != "model" or plan.card.source)
    ]
    if plan.frontend.prompt is not None and plan.why["model"] != "asked for":
        said.append(f"prompt {_short(plan.frontend.prompt)!r}")
    if said:
        say("llmrun: " + ", ".join(said))


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
