"""`llmrun show | ls | pull | rm`: what a model is, and the models on this machine.

Owns the texts. Data goes to stdout, everything else to stderr; each command returns an exit code and lets CardErrors
through. Knows nothing of typer (cli.py). Rich and huggingface_hub are imported when a command runs.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from model_cards.card import ModelCard
from runner import console
from runner.console import EXIT_FAILURE
from runner.download_bars import DownloadBars

if TYPE_CHECKING:
    from model_cards.hub import CachedModel

_UNITS = ("B", "KB", "MB", "GB", "TB")
_TEMPLATE_LINES = 12


def show(model: str, *, as_json: bool = False) -> int:
    """Print the card of `model`; a Hub name is looked up in the cache only. Raises CardError."""
    from model_cards.resolve import resolve

    card = resolve(model, download=False)
    if as_json:
        print(card.to_json())  # noqa: T201
        return 0
    _print_table([("", "", False), ("", "", False)], [list(row) for row in _card_rows(card)], header=False)
    return 0


def _card_rows(card: ModelCard) -> list[tuple[str, str]]:
    details = dict(card.details)
    size, parameters = details.pop("file_size", None), details.pop("parameters", None)
    details.pop("bytes_by_type", None)
    rows = [
        ("name", card.name),
        ("path", card.path or "-"),
        ("kind", f"{details.pop('format', card.kind)}, {card.architecture or 'unknown architecture'}"),
        ("size", _size(size) if isinstance(size, int) else "-"),
        ("parameters", _count(parameters) if isinstance(parameters, int) else "-"),
        ("context", f"{card.context_length:,} tokens" if card.context_length else "unknown"),
        ("vocabulary", f"{card.vocab_size:,} tokens"),
        ("tokenizer", card.tokenizer.kind if card.tokenizer else details.pop("tokenizer_error", "none")),
        ("begin", f"{_token(card, 'bos_token')} {card.bos_token_id}" + (", added" if card.add_bos else "")),
        ("end", f"{_token(card, 'eos_token')} {', '.join(map(str, card.eos_token_ids)) or '-'}"),
        ("sampling", ", ".join(f"{key} {value}" for key, value in card.sampling.items()) or "neutral"),
        ("parsers", f"tools {card.tool_parser or '-'}, reasoning {card.reasoning_parser or '-'}"),
        ("details", ", ".join(f"{key} {value}" for key, value in details.items()) or "-"),
        ("mdcsum", card.mdcsum),
        ("template", _shorten(card.chat_template) + _other_templates(card)),
    ]
    return rows


def _token(card: ModelCard, name: str) -> str:
    return repr(card.special_tokens[name]) if name in card.special_tokens else "-"


def _other_templates(card: ModelCard) -> str:
    return f"\n(further templates: {', '.join(card.named_templates)})" if card.named_templates else ""


def _shorten(template: str | None) -> str:
    if template is None:
        return "none; chats use a plain fallback"
    lines = template.splitlines()
    more = len(lines) - _TEMPLATE_LINES
    return "\n".join(line[:200] for line in lines[:_TEMPLATE_LINES]) + (f"\n… {more} more lines" if more > 0 else "")


def ls(*, as_json: bool = False) -> int:
    """List the models of the Hub cache, and the presets. Raises CardError."""
    from model_cards.hub import HubSettings, list_cached
    from model_cards.presets import aliases

    models, presets = list_cached(), aliases()
    if as_json:
        body = {
            "cache": str(HubSettings.from_environment().cache),
            "models": [_cached_record(model) for model in models],
            "presets": [{"alias": alias, "source": p.source, "about": p.about} for alias, p in presets.items()],
        }
        print(json.dumps(body, indent=2))  # noqa: T201
        return 0
    if models:
        columns = [("MODEL", "bold", False), ("FILES", "", False), ("SIZE", "", True), ("LAST USED", "", False)]
        _print_table(columns, [_cached_row(model) for model in models])
        total = _size(sum(model.num_bytes for model in models))
        console.say(f"{len(models)} models, {total} in {HubSettings.from_environment().cache}")
    else:
        console.say(f"no models in {HubSettings.from_environment().cache}; `llmrun pull org/name` fetches one")
    rows = [[alias, _preset_source(preset.source), preset.about] for alias, preset in presets.items()]
    _print_table([("ALIAS", "bold", False), ("SOURCE", "", False), ("ABOUT", "dim", False)], rows)
    return 0


def _preset_source(source: str) -> str:
    return "bundled" if source.startswith("/") or "\\" in source or source[1:3] == ":/" else source


def _cached_record(model: CachedModel) -> dict[str, Any]:
    record = {**model._asdict(), "path": str(model.path), "quants": list(model.quants)}
    return {**record, "last_used": int(model.last_used)}


def _cached_row(model: CachedModel) -> list[str]:
    files = ", ".join(model.quants) if model.quants else f"{model.num_files} files"
    if model.unfinished_bytes:
        files += " (unfinished; pull resumes it)"
    return [model.repo, files, _size(model.num_bytes), _ago(time.time() - model.last_used)]


def pull(model: str) -> int:
    """Download what `model` needs into the Hub cache, with progress on stderr; resumes. Raises CardError."""
    from model_cards.resolve import resolve

    started = time.monotonic()
    with DownloadBars() as bars:
        card = resolve(model, progress=bars.update)
    size = card.details.get("file_size")
    size_text = f", {_size(size)}" if isinstance(size, int) else ""
    console.say(f"{card.name} is here{size_text} ({time.monotonic() - started:.1f} s); start it with: llmrun {model}")
    print(card.path)  # noqa: T201
    return 0


def rm(model: str, *, yes: bool = False) -> int:
    """Remove a model from the Hub cache, after asking on a terminal unless `yes`. Raises CardError."""
    from model_cards.hub import list_cached, remove_cached

    found = _find_cached(model, list_cached())
    if found is None:
        return EXIT_FAILURE
    if not yes:
        if not sys.stdin.isatty():
            console.warn(f"nothing is removed without a terminal to ask on; say: llmrun rm {model} --yes")
            return EXIT_FAILURE
        sys.stderr.write(
            f"remove {found.repo} ({_size(found.num_bytes)}, all its files) from {found.path.parent}? [y/N] "
        )
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            console.say("nothing was removed")
            return EXIT_FAILURE
    freed = remove_cached(found)
    console.say(f"removed {found.repo}; {_size(freed)} are free again")
    return 0


def _find_cached(model: str, models: list[CachedModel]) -> CachedModel | None:
    """The cached repository that `model` names; says what there is if there is none."""
    import difflib
    from pathlib import Path

    from model_cards.hub_names import parse_hub_name
    from model_cards.presets import aliases

    preset = aliases().get(model.lower())
    name = parse_hub_name(preset.source if preset else model)
    wanted = name.repo.lower() if name else model.lower()
    found = next((cached for cached in models if cached.repo.lower() == wanted), None)
    if found is not None:
        return found
    near = difflib.get_close_matches(model, [cached.repo for cached in models], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`llmrun ls` lists what is there"
    if (preset is not None and name is None) or Path(model).exists():
        hint = "only models of the Hub cache are removed; delete your own files yourself"
    console.warn(f"{model} is not in the cache; {hint}")
    return None


def _print_table(columns: list[tuple[str, str, bool]], rows: list[list[str]], *, header: bool = True) -> None:
    """A table on stdout: (title, style, is right-aligned); tab-separated where stdout is no terminal."""
    if not sys.stdout.isatty():
        for row in [[title for title, _, _ in columns], *rows] if header else rows:
            print("\t".join(cell.replace("\n", "\\n") for cell in row))  # noqa: T201
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, 2, 0, 0))
    for title, style, is_right in columns:
        table.add_column(title, style=style, justify="right" if is_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _size(num_bytes: float) -> str:
    for unit in _UNITS:
        if num_bytes < 1000 or unit == _UNITS[-1]:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")


def _count(number: float) -> str:
    for unit in ("", " thousand", " million", " billion"):
        if number < 1000 or unit == " billion":
            return f"{number:,.3g}{unit}"
        number /= 1000
    raise AssertionError("unreachable")


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"
