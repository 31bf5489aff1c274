"""The words of a command line: in=…, out=…, MODEL and PROMPT, in any order among the flags.

Owns the grammar and the rule that tells a model from a prompt. Knows nothing of what the names lead to.

One word that stands alone is the MODEL if it exists as a path, is a preset's alias, or looks like a path or a Hub id
(`./x`, `x.gguf`, `hf://…`, `org/name`, `org/name:Q4_K_M`); else it is a PROMPT for the bundled demo model. Of two
words the first is the MODEL and the second the PROMPT.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from runner.errors import UsageError

_SUFFIXES = (".gguf", ".json", ".safetensors", ".bin", ".pt", ".engine", ".toml")
_SCHEMES = ("hf://", "hf.co/", "huggingface.co/", "huggingface://", "https://", "http://", "file://")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*([:@][\w.-]+)?")


class Words(NamedTuple):
    """What the bare words said. `source` and `target` are `in=` and `out=` without the key."""

    source: str | None = None
    target: str | None = None
    model: str | None = None
    prompt: str | None = None


def split_tail(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """What stands before `--`, and what stands after it (for pystr and pytok)."""
    if "--" not in arguments:
        return list(arguments), ()
    at = list(arguments).index("--")
    return list(arguments[:at]), tuple(arguments[at + 1 :])


def parse_words(words: Sequence[str], *, aliases: Collection[str], model_path: str | None = None) -> Words:
    """Sort the bare words. `aliases` are the presets' names, `model_path` what --model-path says.

    Raises UsageError: in= or out= given twice, too many words, two different models, a prompt that is not UTF-8.
    """
    sides: dict[str, str] = {}
    plain: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in ("in", "out"):
            plain.append(word)
        elif key in sides:
            raise UsageError(f"{key}= is given twice: {key}={sides[key]} and {key}={value}")
        elif not value:
            raise UsageError(f"{key}= needs a value, such as {'in=http' if key == 'in' else 'out=llamacpp'}")
        else:
            sides[key] = value
    model, prompt = _model_and_prompt(plain, aliases, model_path)
    _check_utf8(prompt)
    return Words(sides.get("in"), sides.get("out"), model, prompt)


def looks_like_model(word: str, aliases: Collection[str] = ()) -> bool:
    """Whether a lone word is meant as a model (see the head of this file)."""
    if word in aliases or _exists(word):
        return True
    if re.search(r"\s", word):
        return False
    lower = word.lower()
    if lower.endswith(_SUFFIXES) or lower.startswith((*_SCHEMES, "./", "../", "~", "/")):
        return True
    return bool(_HUB_ID.fullmatch(word))


def _check_utf8(prompt: str | None) -> None:
    """Python passes on bytes of an argument that are no UTF-8 as lone surrogates (PEP 383)."""
    for place, character in enumerate(prompt or ""):
        if "\udc80" <= character <= "\udcff":
            raise UsageError(
                f"PROMPT is not UTF-8: byte 0x{ord(character) - 0xDC00:02x} at character {place}; "
                "convert it first (iconv -t utf-8)"
            )


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # a prompt may be too long for a file name
        return False


def _model_and_prompt(
    plain: list[str], aliases: Collection[str], model_path: str | None
) -> tuple[str | None, str | None]:
    if len(plain) > 2:
        raise UsageError(
            f'too many words: {" ".join(map(repr, plain))}; put the prompt in quotes: llmrun MODEL "PROMPT"'
        )
    if model_path is not None:
        return _with_model_path(plain, aliases, model_path)
    if not plain:
        return None, None
    if looks_like_model(plain[0], aliases):
        return plain[0], plain[1] if len(plain) == 2 else None
    if len(plain) == 1:
        return None, plain[0]
    raise UsageError(
        f"{plain[0]!r} is not a model: no such file, preset or Hub id (org/name). "
        f'If it is part of the prompt, put all of it in quotes: llmrun "{" ".join(plain)}"'
    )


def _with_model_path(plain: list[str], aliases: Collection[str], model_path: str) -> tuple[str, str | None]:
    if not plain:
        return model_path, None
    if plain[0] == model_path:
        return model_path, plain[1] if len(plain) == 2 else None
    if len(plain) == 2 or looks_like_model(plain[0], aliases):
        raise UsageError(f"two models: MODEL is {plain[0]!r} and --model-path is {model_path!r}; give one of them")
    return model_path, plain[0]
