"""`make run` on a fresh clone with empty caches: with a compiler, and with PREBUILT=1. Needs the network."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.row import Row
from benchmarks.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
BARS_S = {"compiled": 300.0, "prebuilt": 60.0}
ANSWER = "Pretoria"


def measure(settings: Settings) -> list[Row]:
    """Two rows. A quick run takes the prebuilt library only."""
    return [_install(kind) for kind in (("prebuilt",) if settings.is_quick else BARS_S)]


def _install(kind: str) -> Row:
    with tempfile.TemporaryDirectory(prefix="llmrun-fresh-") as folder:
        clone = Path(folder) / "llmrun"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        command = ["make", "run", *(["PREBUILT=1"] if kind == "prebuilt" else [])]
        start = time.monotonic()
        done = subprocess.run(
            command, cwd=clone, env=_clean(Path(folder)), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=1800, check=False,
        )  # fmt: skip
        wall = time.monotonic() - start
    is_right = done.returncode == 0 and ANSWER in done.stdout
    notes = [] if is_right else [f"exit code {done.returncode}: {(done.stderr or done.stdout)[-1500:]}"]
    return Row(
        what=f"fresh `{' '.join(command)}`, empty caches, to the first answer",
        ours=f"{wall:.0f} s" if is_right else "failed",
        bar=f"<= {BARS_S[kind]:g} s",
        is_met=is_right and wall <= BARS_S[kind],
        notes=notes,
    )


def _clean(folder: Path) -> dict[str, str]:
    """The environment without caches, other installs or our own variables; package registries stay configured."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LLMRUN_", "VIRTUAL_ENV", "PYTHON"))}
    kept["PATH"] = os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if ".venv" not in part)
    home = folder / "home"
    home.mkdir()
    dirs = {"LLMRUN_HOME": home / "llmrun", "PIP_CACHE_DIR": home / "pip", "XDG_CACHE_HOME": home / "cache"}
    return kept | {key: str(path) for key, path in dirs.items()}
