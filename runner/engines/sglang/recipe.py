"""How out=sglang is installed: SGLang for CUDA as it comes, or (--cpu) with stand-ins for what CPUs lack.

The wheel asks for CUDA's torch and a dozen kernel packages, several GB of no use on a CPU; so --cpu installs it without
its dependencies, those that it really imports by their pins, and the two files of cpu/.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from runner.engines.environments import Say, Wish
from runner.engines.new_environment import NewEnvironment
from runner.engines.pins import SGLANG, SGLANG_CPU_ALONE, SGLANG_CPU_NEEDS
from runner.engines.python_recipe import PythonRecipe
from runner.engines.sglang.environment import ENVIRONMENT

_CPU_FILES = Path(__file__).parent / "cpu"
_HOOK = "llmrun_torchvision_hook"


class SglangRecipe(PythonRecipe):
    """See environments.Recipe."""

    environment = ENVIRONMENT
    takes = frozenset({"cuda", "cpu", "version", "python"})
    note = "minutes; 4 GB for the CPU, 15 GB for CUDA"
    check_code = (
        "import os, torch; where = 'cuda' if torch.cuda.is_available() else 'cpu'; "
        "where == 'cuda' or os.environ.setdefault('SGLANG_USE_CPU_ENGINE', '1'); "
        "from sglang import Engine; from sglang.srt.managers.scheduler import Scheduler; "
        "import sglang.srt.models.llama; print('LLMRUN imports on', where)"
    )

    def requirements(self, wish: Wish) -> list[str]:
        """See PythonRecipe."""
        return [SGLANG.requirement(wish.version)]

    def add(self, new: NewEnvironment, wish: Wish, say: Say) -> None:
        """See PythonRecipe."""
        if not wish.cpu:
            new.install(self.requirements(wish))
            return
        new.install([pin.requirement() for pin in SGLANG_CPU_NEEDS])
        alone = [pin.requirement() for pin in SGLANG_CPU_ALONE]
        new.install([*self.requirements(wish), *alone], arguments=("--no-deps",))

    def mend(self, new: NewEnvironment, wish: Wish, say: Say) -> None:
        """See PythonRecipe."""
        if wish.cpu:
            say("adding what stands in for CUDA's kernels")
            _add_cpu_files(new.site_packages)


RECIPE = SglangRecipe()


def _add_cpu_files(site_packages: Path) -> None:
    """Copies, so that the environment does not depend on where llmrun is."""
    shutil.copyfile(_CPU_FILES / "torchvision_hook.py", site_packages / f"{_HOOK}.py")
    (site_packages / f"{_HOOK}.pth").write_text(f"import {_HOOK}\n")
    package = site_packages / "sgl_kernel"
    package.mkdir()
    shutil.copyfile(_CPU_FILES / "kernel_stub.py", package / "__init__.py")
