"""PythonRecipe: how an engine that is a Python package is installed, found, described and tried.

An engine's own recipe says what is different: its environment, its packages, what must be mended, what to import as a
test. Folders, locks and renames are environments.py's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar

from runner.engines.environments import Say, Wish
from runner.engines.new_environment import NewEnvironment
from runner.engines.pip import InstallFailed
from runner.engines.python_environment import PythonEnvironment

_MARK = "LLMRUN "
_LOG_LINES = 15


class PythonRecipe:
    """See environments.Recipe. A subclass gives the class variables and `requirements`."""

    environment: ClassVar[PythonEnvironment]
    takes: ClassVar[frozenset[str]] = frozenset({"version", "python"})
    """See Recipe."""
    check_code: ClassVar[str]
    """Python for the engine's interpreter: imports the library and prints `LLMRUN ` and what it found, in a line."""
    check_timeout_s: ClassVar[float] = 300.0
    note: ClassVar[str] = "minutes; several GB"
    """What the download costs, for people."""

    def requirements(self, wish: Wish) -> list[str]:
        """For pip, from pins.py; the first is the library. Raises UsageError for what cannot be."""
        raise NotImplementedError

    def add(self, new: NewEnvironment, wish: Wish, say: Say) -> None:
        """Install the packages. Override it where that takes more steps than one."""
        new.install(self.requirements(wish))

    def mend(self, new: NewEnvironment, wish: Wish, say: Say) -> None:
        """What has to be done to the packages before they can be used; nothing by default."""

    def build(self, folder: Path, wish: Wish, say: Say) -> None:
        """See Recipe."""
        requirement = self.requirements(wish)[0]
        say(f"making an environment with {requirement} ({self.note})")
        new = NewEnvironment(folder, base=wish.python, say=say)
        self.add(new, wish, say)
        self.mend(new, wish, say)
        say("trying it")
        say(self._try(new.python))

    def find(self, chosen: str | None = None) -> Path | None:
        """See Recipe."""
        python = self.environment.find(chosen)
        return None if python is None else Path(python)

    def describe(self, found: Path) -> str:
        """See Recipe."""
        return self.environment.describe(found)

    def version(self, found: Path) -> str:
        """See Recipe."""
        return self.environment.version_in(found.parent.parent) or ""

    def check(self, found: Path) -> str:
        """See Recipe: it imports."""
        return f"{self._try(found)}; {self.describe(found)}"

    def _try(self, found: Path) -> str:
        library = self.environment.packages[0]
        try:
            done = subprocess.run(
                [str(found), "-c", self.check_code],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.check_timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InstallFailed(f"{library} of {found} was not imported within {self.check_timeout_s:.0f} s") from None
        except OSError as problem:
            raise InstallFailed(f"{found} cannot be run: {problem.strerror or problem}") from None
        told = next((line[len(_MARK) :] for line in done.stdout.splitlines() if line.startswith(_MARK)), None)
        if done.returncode != 0 or told is None:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise InstallFailed(
                f"{library} of {found} cannot be used: {lines[-1]}", log_tail="\n".join(lines[-_LOG_LINES:])
            )
        return told.strip()
