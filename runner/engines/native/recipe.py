"""How out=native is installed: an environment with PyTorch and what reads weights. Folders are environments.py's."""

from __future__ import annotations

import subprocess
from pathlib import Path

from runner.engines.environments import Say, Wish
from runner.engines.native.environment import find_python, installed_dir, python_in
from runner.engines.native.kernels.cpu_build import BuildFailed, library_path
from runner.engines.pins import NATIVE
from runner.engines.pip import InstallFailed, install_environment
from runner.errors import UsageError

_CHECK = (
    "import torch, safetensors, msgspec, gguf; "
    "where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f'{torch.get_num_threads()} CPU threads'; "
    "x = torch.ones(64, 64); assert float((x @ x).sum()) == 64.0**3; print(f'torch {torch.__version__} on {where}')"
)
_CHECK_TIMEOUT_S = 120.0


class NativeRecipe:
    """See environments.Recipe."""

    def build(self, folder: Path, wish: Wish, say: Say) -> None:
        """See Recipe."""
        if wish.prebuilt or wish.accelerator is not None:
            raise UsageError(
                "out=native has one kind of installation; leave --prebuilt and --cuda, --metal, --vulkan out"
            )
        requirements = [pin.requirement(wish.version if pin.package == "torch" else None) for pin in NATIVE]
        say(f"making an environment with {requirements[0]} (a few minutes; a CUDA build has several GB)")
        install_environment(folder, requirements, on_line=_progress(say))
        _compile_kernels(say)
        say("trying it")
        say(self.check(folder / "bin" / "python"))

    def find(self) -> Path | None:
        """See Recipe."""
        python = find_python()
        return None if python is None else Path(python)

    def describe(self, found: Path) -> str:
        """See Recipe."""
        if python_in(installed_dir()) == found:
            return f"an environment of its own in {installed_dir()}"
        return f"torch of {found}"

    def check(self, found: Path) -> str:
        """See Recipe."""
        done = subprocess.run(
            [str(found), "-c", _CHECK], capture_output=True, text=True, timeout=_CHECK_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise InstallFailed(f"torch of {found} cannot be used: {lines[-1]}", log_tail="\n".join(lines[-15:]))
        return f"{done.stdout.strip()}; {self.describe(found)}"


RECIPE = NativeRecipe()


def _compile_kernels(say: Say) -> None:
    """Now, so that the first run need not; without a compiler torch's own kernels serve."""
    say("compiling kernels for this CPU (some seconds)")
    try:
        library_path()
    except BuildFailed as problem:
        say(f"kernels for this CPU could not be compiled, so that out=native will be slower on it: {problem}")


def _progress(say: Say):  # type: ignore[no-untyped-def]
    """Says each package that is downloaded or installed."""

    def on_line(line: str) -> None:
        words = line.split()
        if words[:1] == ["Downloading"] and len(words) > 1:
            say(f"downloading {words[1].rsplit('/', 1)[-1]}")
        elif line.startswith("Installing collected packages"):
            say("unpacking")

    return on_line
