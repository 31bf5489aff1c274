"""LoRA adapters: loaded once at start, one of them (or none) in use per step."""

from __future__ import annotations

from pathlib import Path

from runner.engines.llamacpp.context import Context
from runner.engines.llamacpp.library import Library
from runner.engines.llamacpp.model import Model, load_fault
from runner.errors import EngineStartFailed


def parse_adapters(arguments: tuple[str, ...]) -> dict[str, Path]:
    """`PATH` or `NAME=PATH` -> name -> path; the name is the file's, without extension. Raises EngineStartFailed."""
    found: dict[str, Path] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator:
            name, path = Path(argument).stem, argument
        if name in found:
            raise EngineStartFailed(f"two adapters are named {name}; give them names: --lora NAME=PATH")
        found[name] = Path(path).expanduser()
        if not _is_file(found[name]):
            raise EngineStartFailed(f"adapter {name}: there is no file {found[name]}; give --lora PATH or NAME=PATH")
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be read
        return False


class Adapters:
    """The loaded adapters by name. They belong to the model and go with it."""

    def __init__(self, library: Library, model: Model, paths: dict[str, Path]) -> None:
        """All must be loaded before a context is made. Raises EngineStartFailed."""
        self._pointers = {name: _load(library, model, name, path) for name, path in paths.items()}
        self._in_use: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """In the order given."""
        return tuple(self._pointers)

    def use(self, context: Context, name: str | None) -> None:
        """From the next decode on. Switching costs some milliseconds, staying nothing."""
        if name != self._in_use:
            context.set_adapter(None if name is None else self._pointers[name])
            self._in_use = name


def _load(library: Library, model: Model, name: str, path: Path) -> int:
    library.take_log()
    pointer: int | None = library.c.llama_adapter_lora_init(model.pointer, str(path).encode())
    if not pointer:
        log = library.take_log()
        raise EngineStartFailed(f"adapter {name}: llama.cpp cannot load {path}: {load_fault(log)}", log_tail=log)
    return pointer
