"""PythonEnvironment: which Python runs an engine that is a Python package. Looks for files only; imports nothing of it.

Search order: --engine-python; LLMRUN_<ENGINE>_PYTHON; what `llmrun engines install` made; the active virtual
environment; the launcher's own Python. Knows no engine: each has one of these in its folder.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from runner import paths
from runner.errors import EngineStartFailed

_ACTIVE = ("VIRTUAL_ENV", "CONDA_PREFIX")
_PYTHONS = ("bin/python", "Scripts/python.exe")
_SITES = ("lib/python3*/site-packages", "Lib/site-packages")


class PythonEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """Where one engine's packages may be."""

    engine: str
    """Name in the table: out=ENGINE."""
    library: str
    """For people: `vLLM`."""
    packages: tuple[str, ...]
    """Import names that must all be there; the first is the library itself."""
    distributions: tuple[str, ...] = ()
    """Names of the library on the index, as they stand in *.dist-info; the first found tells the version."""

    @property
    def variable(self) -> str:
        """The environment variable that names a Python for this engine alone."""
        return f"LLMRUN_{self.engine.upper()}_PYTHON"

    @property
    def install_command(self) -> str:
        """The next step where it is not installed."""
        return f"llmrun engines install {self.engine}"

    @property
    def installed_dir(self) -> Path:
        """The folder that `llmrun engines install` fills: a virtual environment."""
        return paths.engines_dir() / self.engine

    def find(self, chosen: str | None = None) -> str | None:
        """The interpreter to use, or None. Raises EngineStartFailed when the user names one that is not there."""
        for origin, path in (("--engine-python", chosen), (self.variable, os.environ.get(self.variable))):
            if path:
                return self._named(origin, path)
        folders = [self.installed_dir, *(Path(os.environ[name]) for name in _ACTIVE if os.environ.get(name))]
        for folder in folders:
            python = python_in(folder)
            if python is not None and self.is_in(folder):
                return str(python)
        return sys.executable if all(_is_importable(name) for name in self.packages) else None

    def require(self, chosen: str | None = None) -> str:
        """As `find`; raises EngineStartFailed when there is none."""
        python = self.find(chosen)
        if python is None:
            raise EngineStartFailed(
                f"out={self.engine} needs {self.library}, which is not installed; run: {self.install_command} "
                f"(or name a Python that has it: --engine-python PATH)",
                hint=self.install_command,
            )
        return python

    def is_in(self, folder: Path) -> bool:
        """Whether a virtual environment has all packages."""
        return all(any(_has_package(site, name) for site in _sites(folder)) for name in self.packages)

    def version_in(self, folder: Path) -> str | None:
        """The library's version in a virtual environment, or None."""
        names = self.distributions or self.packages[:1]
        for site in _sites(folder):
            for name in names:
                for found in sorted(site.glob(f"{name}-*.dist-info")):
                    return found.name.removesuffix(".dist-info").partition("-")[2]
        return None

    def describe(self, python: Path) -> str:
        """`vllm 0.33.0; PLACE`, one line for people."""
        folder = python.parent.parent
        version = self.version_in(folder)
        where = folder if folder == self.installed_dir else python
        return f"{self.packages[0]} {version or 'of unknown version'}; {where}"

    def _named(self, origin: str, path: str) -> str:
        python = Path(path).expanduser()
        if python.is_dir():
            python = python_in(python) or python / _PYTHONS[0]
        if not python.is_file():
            raise EngineStartFailed(
                f"{origin} {path}: there is no such file",
                hint=f"name a Python that has {self.packages[0]}, or leave {origin} out",
            )
        return str(python.absolute())


def python_in(folder: Path) -> Path | None:
    """The interpreter of a virtual environment."""
    return next((folder / name for name in _PYTHONS if (folder / name).exists()), None)


def _sites(folder: Path) -> Iterator[Path]:
    for pattern in _SITES:
        yield from sorted(folder.glob(pattern))


def _has_package(site: Path, name: str) -> bool:
    """A package, a module, a compiled module, or one that is installed in editable form."""
    if (site / name / "__init__.py").exists() or (site / f"{name}.py").exists():
        return True
    patterns = (f"{name}.*.so", f"{name}.so", f"{name}/*.so", f"{name}.*.pyd", f"__editable__.{name}-*.pth")
    return any(True for pattern in patterns for _ in site.glob(pattern))


def _is_importable(name: str) -> bool:
    """In the launcher's own Python; a folder of that name without code does not count."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None
