"""What several engines refuse in the same words. Knows no engine; launcher and children read it (Python 3.10)."""

from __future__ import annotations

from pathlib import Path

from runner.engines.base import EngineSpec
from runner.errors import UsageError


def refuse_words(spec: EngineSpec) -> None:
    """Raises UsageError for an argument (`out=NAME:ARGUMENT`) or words after `--`, of an engine that takes neither."""
    if spec.argument:
        raise UsageError(f"out={spec.name} takes no argument, got {spec.argument!r}; the model is named after it")
    if spec.tail:
        raise UsageError(f"out={spec.name} takes nothing after --, got {' '.join(spec.tail)}; use --extra-engine-args")


def read_adapter(text: str, engine: str) -> tuple[str, str]:
    """(name, folder) of `--lora [NAME=]FOLDER`, a PEFT folder. Raises UsageError."""
    name, is_named, path = text.partition("=")
    if not is_named:
        name, path = Path(text).stem or text, text
    folder = Path(path).expanduser().absolute()
    if not (folder / "adapter_config.json").is_file():
        raise UsageError(f"--lora {text}: there is no adapter_config.json in {folder}; out={engine} takes PEFT folders")
    return name, str(folder)
