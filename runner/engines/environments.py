"""Installing engines: what `llmrun engines install / remove / check / list` do.

Owns the folder of an engine and its life: built in a staging folder, moved into place in one rename, under a lock, so
that a half-made engine is never used and an interrupted install leaves nothing. HOW one engine is built is its
recipe's matter (RECIPES, imported on use).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from runner import paths
from runner.engines import ENGINES, EngineEntry
from runner.engines.new_environment import retarget
from runner.engines.pip import InstallFailed
from runner.errors import LlmrunError, UsageError
from runner.registry import load

Accelerator = Literal["cuda", "metal", "vulkan"]
Say = Callable[[str], None]

RECIPES = {
    "llamacpp": "runner.engines.llamacpp.recipe:RECIPE",
    "mistralrs": "runner.engines.mistralrs.recipe:RECIPE",
    "native": "runner.engines.native.recipe:RECIPE",
    "sglang": "runner.engines.sglang.recipe:RECIPE",
    "trtllm": "runner.engines.trtllm.recipe:RECIPE",
    "vllm": "runner.engines.vllm.recipe:RECIPE",
}
"""name -> "module:attr" of a Recipe. Engines that are not here need no installation, or are not built yet."""


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an engine can be used here and, if not, the command that makes it so."""

    name: str
    is_usable: bool
    detail: str
    command: str = ""
    """Makes it usable, where it is not and can be."""
    summary: str = ""
    version: str = ""
    where: str = ""
    models: tuple[str, ...] = ()
    """Kinds of weights that it runs: gguf, hf, trtllm; `none` if it needs no model."""
    level: str = ""
    """`tokens` (our templates, tools and stop strings), `text` (its own), or `models`."""
    flags: tuple[str, ...] = ()
    """Of the flags that only some engines know, those that this one honours."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked of an installation."""

    prebuilt: bool = False
    accelerator: Accelerator | None = None
    version: str | None = None
    cpu: bool = False
    """For the CPU, where that is another package."""
    python: str | None = None
    """Base of the environment (a path, a name or a version such as 3.12); None is the launcher's own."""

    def words(self) -> list[str]:
        """What is asked for, as the flags say it without their dashes."""
        asked = [name for name in ("prebuilt", "cpu", "version", "python") if getattr(self, name)]
        return [*asked, *([self.accelerator] if self.accelerator else [])]


class Recipe(Protocol):
    """How one engine is installed. PythonRecipe is the base of those that are Python packages."""

    @property
    def takes(self) -> frozenset[str]:
        """What it can honour of `Wish.words()`; all else is refused before anything is done."""

    def build(self, folder: Path, wish: Wish, say: Say) -> None:
        """Fill the empty `folder` and try what is in it. Raises InstallFailed or UsageError."""

    def find(self, chosen: str | None = None) -> Path | None:
        """What would be used now, installed by us or not; with `chosen` (--engine-python) that Python, as it is.

        Raises EngineStartFailed where it is not there.
        """

    def describe(self, found: Path) -> str:
        """One line for people; cheap."""

    def version(self, found: Path) -> str:
        """Of the library, where files tell it; else empty. Cheap."""

    def check(self, found: Path) -> str:
        """Try it for real; one line for people. Raises LlmrunError."""


def list_engines() -> list[EngineStatus]:
    """All engines of the table. Cheap: looks for files, starts nothing."""
    return [_status(entry) for entry in ENGINES.values()]


def check(name: str, *, python: str | None = None) -> EngineStatus:
    """As list_engines for one engine, but tried for real: its library computes something. Raises UsageError.

    `python` is a Python (or the folder of an environment) of the user's own to take in place of what would be found.
    """
    entry = _entry(name)
    if python is not None and "engine_python" not in entry.flags:
        takers = ", ".join(other.name for other in ENGINES.values() if "engine_python" in other.flags)
        raise UsageError(f"`llmrun engines check {name}` does not know --engine-python; it is for {takers}")
    status = _status(entry, python)
    if not status.is_usable or name not in RECIPES:
        return status
    try:
        return msgspec.structs.replace(status, detail=_recipe(name).check(Path(status.where)))
    except LlmrunError as problem:
        command = _command(name) if python is None else ""
        return msgspec.structs.replace(status, is_usable=False, detail=str(problem), command=command)


def install(
    name: str,
    *,
    prebuilt: bool = False,
    accelerator: Accelerator | None = None,
    version: str | None = None,
    cpu: bool = False,
    python: str | None = None,
    if_missing: bool = False,
    say: Say | None = None,
) -> Path:
    """Install an engine and return its folder (or, with `if_missing`, what is usable already).

    Raises UsageError for a name or combination that cannot be, InstallFailed when it came to nothing.
    """
    recipe = _recipe(name)
    wish = Wish(prebuilt=prebuilt, accelerator=accelerator, version=version, cpu=cpu, python=python)
    _refuse(name, recipe, wish)
    say = say or _say
    if if_missing and (found := recipe.find()) is not None:
        return found
    root = paths.engines_dir()
    with _locked(root, name, say):
        if if_missing and (found := recipe.find()) is not None:
            return found  # somebody else installed it while we waited
        _sweep(root, name)
        return _install(root, name, recipe, _settled(recipe, wish, say), say)


def remove(name: str) -> bool:
    """Delete what we installed; False when there was nothing. Raises UsageError."""
    _recipe(name)
    root = paths.engines_dir()
    if not (root / name).exists():
        return False
    with _locked(root, name, _say):
        _sweep(root, name)
        _discard(root, name)
    return True


def _refuse(name: str, recipe: Recipe, wish: Wish) -> None:
    """Raises UsageError for flags that mean nothing to this engine's installation."""
    wrong = [word for word in wish.words() if word not in recipe.takes]
    if wrong:
        takes = ", ".join(f"--{word}" for word in sorted(recipe.takes)) or "no such flags"
        got = ", ".join(f"--{word}" for word in wrong)
        raise UsageError(f"`llmrun engines install {name}` does not know {got}; it takes {takes}")


def _settled(recipe: Recipe, wish: Wish, say: Say) -> Wish:
    """Where an engine has two builds and none is named, the one for this machine."""
    if not {"cpu", "cuda"} <= recipe.takes or wish.cpu or wish.accelerator is not None or _has_nvidia():
        return wish
    say("there is no NVIDIA driver here: taking the build for the CPU (--cuda takes the other)")
    return msgspec.structs.replace(wish, cpu=True)


def _install(root: Path, name: str, recipe: Recipe, wish: Wish, say: Say) -> Path:
    staging = root / f".{name}-new-{os.getpid()}"
    try:
        staging.mkdir()
        recipe.build(staging, wish, say)
        retarget(staging, root / name)
        _discard(root, name)
        staging.rename(root / name)
    except OSError as problem:
        raise InstallFailed(f"{name} could not be installed into {root}: {problem.strerror or problem}") from problem
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    say(f"installed: {root / name}")
    return root / name


def _discard(root: Path, name: str) -> None:
    """Out of sight in one rename, then deleted."""
    if (root / name).exists():
        old = root / f".{name}-old-{os.getpid()}"
        (root / name).rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _sweep(root: Path, name: str) -> None:
    """What an install that was killed left behind. We hold the lock, so nobody is using it."""
    for pattern in (f".{name}-new-*", f".{name}-old-*"):
        for leftover in root.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(root: Path, name: str, say: Say) -> Iterator[None]:
    """One installation of an engine at a time; the lock ends with the process."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / f".{name}.lock").open("w")
    except OSError as problem:
        raise InstallFailed(f"{root} cannot be written: {problem.strerror or problem}") from problem
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another installation of {name} is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _status(entry: EngineEntry, python: str | None = None) -> EngineStatus:
    about = EngineStatus(
        name=entry.name,
        is_usable=False,
        detail=entry.summary,
        summary=entry.summary,
        models=entry.models,
        level=entry.level,
        flags=entry.flags,
    )
    if not entry.factory:
        detail = "not built yet" + (f"; use {entry.instead}" if entry.instead else "")
        return msgspec.structs.replace(about, detail=detail)
    if entry.name not in RECIPES:
        return msgspec.structs.replace(about, is_usable=True)
    try:
        recipe = _recipe(entry.name)
        found = recipe.find(python)
    except LlmrunError as problem:
        command = _command(entry.name) if python is None else ""
        return msgspec.structs.replace(about, detail=str(problem), command=command)
    if found is None:
        return msgspec.structs.replace(about, detail="not installed", command=_command(entry.name))
    return msgspec.structs.replace(
        about, is_usable=True, detail=recipe.describe(found), version=recipe.version(found), where=str(found)
    )


def _command(name: str) -> str:
    return f"llmrun engines install {name}"


def _has_nvidia() -> bool:
    """Whether a driver of NVIDIA is here; what it can do is the engine's to find out."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def _entry(name: str) -> EngineEntry:
    if name not in ENGINES:
        raise UsageError(f"there is no engine {name!r}; known are {', '.join(ENGINES)}")
    return ENGINES[name]


def _recipe(name: str) -> Recipe:
    entry = _entry(name)
    if name not in RECIPES:
        state = "needs no installation" if entry.factory else "is not built yet"
        raise UsageError(f"{name} {state}; `llmrun engines install` knows {', '.join(RECIPES)}")
    recipe: Recipe = load(RECIPES[name])
    return recipe


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
