"""Builds the C++ kernels of kernels/cpu/ with this machine's compiler, once for each compiler, CPU and source text.

Owns the command, the key and the folder. Knows neither torch nor what the library exports.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner import paths

FOLDER_VARIABLE = "LLMRUN_NATIVE_KERNELS"
_SOURCES = Path(__file__).with_name("cpu")
_FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread", "-w")
_COMPILERS = ("c++", "g++", "clang++")
_BUILD_LIMIT_S = 300


class BuildFailed(Exception):
    """Why there is no library; one line."""


def library_path() -> Path:
    """The library for this machine, built first if it is not there (about 5 s). Raises BuildFailed."""
    compiler = find_compiler()
    folder = Path(os.environ.get(FOLDER_VARIABLE) or paths.cache_dir() / "kernels")
    path = folder / f"llmrun-cpu-{_key(compiler)}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not path.exists():
                _build(compiler, path)
    except OSError as error:
        raise BuildFailed(f"{folder}: {error.strerror or error}") from error
    return path


def find_compiler() -> str:
    """CXX, or the first C++ compiler on PATH. Raises BuildFailed."""
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else _COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise BuildFailed(f"no C++ compiler ({wanted or ', '.join(_COMPILERS)})")


def _key(compiler: str) -> str:
    """Changes with the sources, the flags, the compiler's version and what the CPU can do."""
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    status = Path(compiler).resolve().stat()
    digest.update(repr((_FLAGS, compiler, status.st_size, status.st_mtime_ns, platform.machine())).encode())
    digest.update(_cpu_flags())
    return digest.hexdigest()[:16]


def _cpu_flags() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


def _build(compiler: str, path: Path) -> None:
    """Under another name until it is whole."""
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    sys.stderr.write("native: compiling CPU kernels (once, about 10 s)\n")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *_FLAGS, native, "-o", str(built), str(_SOURCES / "api.cpp")]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_LIMIT_S)
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines()
            raise BuildFailed(f"{compiler} failed: {(lines or ['no message'])[0]}") from error
        except subprocess.TimeoutExpired as error:
            raise BuildFailed(f"{compiler} took more than {_BUILD_LIMIT_S} s") from error
        built.rename(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time; where there are no file locks (Windows), two builds end in the same file."""
    with path.open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except ImportError:
            pass
        yield
