"""Settings from the three places, merged: flag beats environment beats config file beats default.

Owns reading LLMRUN_* and the TOML file, and who wins. Which flags there are is flags.py's.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import UsageError
from runner.flags import BY_KEY, NEVER_IN_FILE, OTHER_VARIABLES, Value, parse_value


class Settings(NamedTuple):
    """Typed values by key, and where each came from (`--http-port`, `LLMRUN_HTTP_PORT`, `http_port in FILE`)."""

    values: dict[str, Value]
    sources: dict[str, str]


def merge(given: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """All settings. `given` is what stood on the command line by key, untyped. Raises UsageError.

    `config` itself comes from --config or LLMRUN_CONFIG, never from the file.
    """
    flags = {key: (f"--{key.replace('_', '-')}", raw) for key, raw in given.items()}
    layers = [flags, read_environment(environment)]
    config = next((layer["config"] for layer in layers if "config" in layer), None)
    if config is not None:
        layers.append(read_file(Path(str(config[1])), config[0]))
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for layer in reversed(layers):
        for key, (origin, raw) in layer.items():
            # Every layer is checked, also where another one wins: a typo must not hide behind a flag.
            values[key] = parse_value(BY_KEY[key], raw, origin)
            sources[key] = origin
    return Settings(values, sources)


def read_environment(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """key -> (variable, text) of every LLMRUN_* variable of a flag; empty ones count as unset.

    Raises UsageError for a variable that is nobody's.
    """
    known = {flag.env: key for key, flag in BY_KEY.items()}
    found: dict[str, tuple[str, str]] = {}
    for name, text in environment.items():
        if not name.startswith("LLMRUN_") or name in OTHER_VARIABLES:
            continue
        if name not in known:
            hint = did_you_mean(name, [*known, *OTHER_VARIABLES])
            raise UsageError(f"unknown environment variable {name}{hint}; unset it, or see `llmrun --help`")
        if text:
            found[known[name]] = (name, text)
    return found


def read_file(path: Path, origin: str) -> dict[str, tuple[str, Any]]:
    """key -> (`key in FILE`, TOML value). Raises UsageError for a bad file or an unknown key."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{origin}: cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{origin}: {path} is not valid TOML: {error}") from None
    found: dict[str, tuple[str, Any]] = {}
    for name, raw in data.items():
        key = name.replace("-", "_")
        if key not in BY_KEY or key in NEVER_IN_FILE:
            hint = did_you_mean(key, BY_KEY)
            raise UsageError(f"{path}: unknown key {name!r}{hint}; keys are the long flags with underscores")
        found[key] = (f"{name} in {path}", raw)
    return found


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean X?` for the nearest known word, or nothing."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {match[0]}?" if match else ""
