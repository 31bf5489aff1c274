"""Where llama.cpp's library lies, and the loaded library itself with its log.

Search order: LLMRUN_LLAMACPP_LIB; what `llmrun engines install llamacpp` made; the folder of an importable
llama_cpp or xllamacpp package (looked up, never imported). Does not know models.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections import deque
from pathlib import Path
from typing import NamedTuple

from runner import paths
from runner.engines.llamacpp import binding
from runner.errors import EngineStartFailed

LIBRARY_VARIABLE = "LLMRUN_LLAMACPP_LIB"
INSTALL_HINT = "llmrun engines install llamacpp"
_LOG_WARNING, _LOG_ERROR, _LOG_CONTINUED = 3, 4, 5
_PATTERNS = (
    "llama_cpp/lib/libllama.so",
    "llama_cpp/lib/libllama.dylib",
    "llama_cpp/lib/llama.dll",
    "xllamacpp/xllamacpp*.so",
    "xllamacpp/xllamacpp*.pyd",
)


def library_in(folder: Path) -> Path | None:
    """The library inside a folder into which pip put llama_cpp or xllamacpp."""
    for pattern in _PATTERNS:
        for path in sorted(folder.glob(pattern)):
            return path
    return None


def installed_dir() -> Path:
    """The folder that `llmrun engines install llamacpp` fills."""
    return paths.engines_dir() / "llamacpp"


def find_library() -> Path | None:
    """Path of the library to use, or None. Raises EngineStartFailed when LLMRUN_LLAMACPP_LIB names no file."""
    chosen = os.environ.get(LIBRARY_VARIABLE)
    if chosen:
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise EngineStartFailed(
                f"{LIBRARY_VARIABLE}={chosen}: there is no such file", hint=f"unset {LIBRARY_VARIABLE}"
            )
        return path
    return library_in(installed_dir()) or _importable_library()


def _importable_library() -> Path | None:
    for package in ("llama_cpp", "xllamacpp"):
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            path = library_in(Path(found.origin).parent.parent)
            if path is not None:
                return path
    return None


def require_library() -> Path:
    """As find_library; raises EngineStartFailed when there is none."""
    path = find_library()
    if path is None:
        raise EngineStartFailed("llama.cpp is not installed", hint=INSTALL_HINT)
    return path


class Library:
    """The loaded library: `c` has the functions by their C names. One per process (the log callback is global)."""

    def __init__(self, path: Path, *, verbose: bool = False) -> None:
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else an abort inside ggml runs gdb first, for seconds
        self.path = path
        self.last_lines: deque[str] = deque(maxlen=12)
        self._verbose = verbose
        self._level = 0
        handle = _open(path)
        self.version = _version(handle)
        try:
            self.c = binding.bind(handle, [_open(file) for file in _companions(path)])
        except binding.UnknownLayout as problem:
            raise EngineStartFailed(
                f"{path} (llama.cpp {self.version}) cannot be used: {problem}; llmrun knows llama.cpp 0.5 and 0.6",
                hint=INSTALL_HINT,
            ) from None
        self._log_callback = binding.LogCallback(self._log)  # must outlive the library
        self.c.llama_log_set(self._log_callback, None)
        handle.llama_backend_init()

    def _log(self, level: int, text: bytes, _data: object) -> None:
        if level != _LOG_CONTINUED:
            self._level = level
        line = text.decode(errors="replace")
        if self._level in (_LOG_WARNING, _LOG_ERROR) and line.strip(" .\n"):
            self.last_lines.append(line.rstrip("\n"))
        if self._verbose or self._level == _LOG_ERROR or (self._level == _LOG_WARNING and not _is_noise(line)):
            sys.stderr.write(line)

    def take_log(self) -> str:
        """The last warnings and errors since the last call."""
        lines = "\n".join(self.last_lines)
        self.last_lines.clear()
        return lines

    def devices(self) -> list[Device]:
        """Devices that are not the CPU itself."""
        found = (self._device(index) for index in range(self.c.ggml_backend_dev_count()))
        return [device for device in found if device.kind in (1, 2)]

    def _device(self, index: int) -> Device:
        pointer = self.c.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        self.c.ggml_backend_dev_memory(pointer, ctypes.byref(free), ctypes.byref(total))
        name = self.c.ggml_backend_dev_description(pointer).decode(errors="replace")
        return Device(name, self.c.ggml_backend_dev_type(pointer), free.value, total.value)


class Device(NamedTuple):
    """One accelerator. `kind`: 1 is a GPU with its own memory, 2 one that shares the host's (ggml-backend.h)."""

    name: str
    kind: int
    free_bytes: int
    total_bytes: int


def _is_noise(line: str) -> bool:
    """Warnings about our own choices: the shared pool of cells may be larger than one request's context."""
    return any(part in line for part in ("possible training context overflow", "n_ctx_seq", "special_eos_id is not in"))


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as problem:
        raise EngineStartFailed(f"cannot load {path}: {problem}", hint=INSTALL_HINT) from None


def _version(handle: ctypes.CDLL) -> str:
    function = getattr(handle, "llama_version", None)
    if function is None:
        return "of an unknown version"
    function.restype = ctypes.c_char_p
    return (function() or b"").decode(errors="replace")


def _companions(path: Path) -> list[Path]:
    """libggml.so and libggml-base.so, which hold the device functions of a build with shared libraries."""
    return [file for stem in ("libggml", "libggml-base") for file in sorted(path.parent.glob(f"{stem}{path.suffix}"))]
