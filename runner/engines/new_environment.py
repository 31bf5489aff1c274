"""NewEnvironment: a virtual environment in the making, by uv where it is there, else by venv and pip.

Owns the command lines of both, the settings of pip that uv must be told, and moving a finished environment to another
folder. Does not know engines; whether a folder is staged, locked or renamed is environments.py's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from runner.engines.pip import InstallFailed, failure, run
from runner.engines.python_environment import python_in

Say = Callable[[str], None]
_SCRIPT_LIMIT_BYTES = 1 << 20
_FROM_PIP = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
}
"""uv reads none of pip's settings; users who have a mirror have set it for pip."""


class NewEnvironment:
    """One environment in `folder`, which may be moved when it is finished (see `retarget`).

    Every method raises InstallFailed.
    """

    def __init__(self, folder: Path, *, base: str | None = None, say: Say) -> None:
        """Makes it, empty but for pip. `base` is its Python (path, or what uv understands); None is the launcher's."""
        self.folder = folder
        self._say = say
        self._uv = find_uv()
        base = base or sys.executable
        command = [self._uv, "venv", "--quiet", "--python", base] if self._uv else [_program(base), "-m", "venv"]
        self._run([*command, str(folder)], "a virtual environment")

    @property
    def python(self) -> Path:
        """Its interpreter."""
        found = python_in(self.folder)
        if found is None:
            raise InstallFailed(f"the virtual environment in {self.folder} has no Python")
        return found

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        return next(
            path for pattern in ("lib/python3*", "Lib") for path in self.folder.glob(f"{pattern}/site-packages")
        )

    def install(
        self, requirements: Iterable[str], *, arguments: tuple[str, ...] = (), env: Mapping[str, str] | None = None
    ) -> None:
        """Add packages. `arguments` are those that pip and uv share: `--no-deps`, `--no-build-isolation` ..."""
        wanted = list(requirements)
        if self._uv:
            command = [
                self._uv,
                "pip",
                "install",
                "--python",
                str(self.python),
                "--index-strategy",
                "unsafe-best-match",
            ]
        else:
            command = [str(self.python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        self._run([*command, *arguments, *wanted], ", ".join(wanted), env)

    def uninstall(self, *packages: str) -> None:
        """Take packages away; those that are not there do not matter."""
        if self._uv:
            command = [self._uv, "pip", "uninstall", "--python", str(self.python)]
        else:
            command = [str(self.python), "-m", "pip", "uninstall", "-y", "-q"]
        self._run([*command, *packages], f"the removal of {', '.join(packages)}")

    def _run(self, command: list[str], what: str, env: Mapping[str, str] | None = None) -> None:
        fixed = {"PIP_USER": "0", "PYTHONUNBUFFERED": "1"}
        temporary = self.folder / "tmp"
        if (self.folder / "pyvenv.cfg").exists():  # uv makes none where files are
            temporary.mkdir(exist_ok=True)
            fixed["TMPDIR"] = str(temporary)  # goes with the folder, whatever happens
        settings = _settings_for_uv() if self._uv else {}
        try:
            code, lines = run(command, {**os.environ, **settings, **fixed, **(env or {})}, self._progress)
        except OSError as problem:
            raise InstallFailed(
                f"{command[0]} cannot be run: {problem.strerror or problem}", hint="check --python"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if code != 0:
            raise failure(what, code, lines)

    def _progress(self, line: str) -> None:
        """What is downloaded and unpacked, in a few words."""
        words = line.split()
        if words[:1] == ["Downloading"] and len(words) > 1 and not words[1].endswith(".metadata"):
            size = " ".join(words[2:4]) if len(words) > 3 else " ".join(words[2:3])
            self._say(" ".join(filter(None, ("downloading", words[1].rsplit("/", 1)[-1], size))))
        elif line.startswith(("Installing collected packages", "Prepared ")):
            self._say("unpacking")


def find_uv() -> str | None:
    """The program uv: on PATH, or installed beside the launcher."""
    beside = Path(sys.executable).with_name("uv")
    return shutil.which("uv") or (str(beside) if os.access(beside, os.X_OK) else None)


def retarget(folder: Path, home: Path) -> None:
    """Make an environment that was built in `folder` fit for a rename to `home`: its scripts name their own place."""
    ours, theirs = os.fsencode(folder), os.fsencode(home)
    scripts = [path for name in ("bin", "Scripts") for path in folder.glob(f"{name}/*")]
    for path in [*scripts, *folder.glob("pyvenv.cfg")]:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _SCRIPT_LIMIT_BYTES:
            continue
        content = path.read_bytes()
        if ours in content and not content.startswith(b"\x7fELF"):
            content = content.replace(ours, theirs)
            path.write_bytes(content.replace(os.fsencode(folder.name), os.fsencode(home.name)))  # the prompt


def _program(base: str) -> str:
    """A path, a name on PATH, or a version: `3.12` is python3.12."""
    if base.replace(".", "").isdigit():
        base = f"python{base}"
    return str(Path(base).expanduser()) if os.sep in base else base


def _settings_for_uv() -> dict[str, str]:
    """pip's own settings as uv's environment variables; what the user has set for uv wins."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    settings: dict[str, str] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, _, value = line.partition("=")
        variable = _FROM_PIP.get(name.rpartition(".")[2])
        if variable is None or name.partition(".")[0] not in ("global", "install", ":env:"):
            continue
        text = " ".join(shlex.split(value.strip()))
        settings[variable] = f"{settings[variable]} {text}" if variable in settings and _is_list(variable) else text
    return {name: _joined(name, value) for name, value in settings.items() if name not in os.environ}


def _is_list(variable: str) -> bool:
    return variable in ("UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONSTRAINT", "UV_INSECURE_HOST")


def _joined(variable: str, value: str) -> str:
    """uv separates links by commas, all else by blanks."""
    return ",".join(dict.fromkeys(value.split())) if variable == "UV_FIND_LINKS" else value
