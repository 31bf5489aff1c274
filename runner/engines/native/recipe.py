"""How out=native is installed: an environment with PyTorch and what reads weights. Folders are environments.py's."""

from __future__ import annotations

from runner.engines.environments import Say, Wish
from runner.engines.native.environment import ENVIRONMENT
from runner.engines.native.kernels.cpu_build import BuildFailed, library_path
from runner.engines.new_environment import NewEnvironment
from runner.engines.pins import NATIVE
from runner.engines.python_recipe import PythonRecipe


class NativeRecipe(PythonRecipe):
    """See environments.Recipe."""

    environment = ENVIRONMENT
    note = "a few minutes; a CUDA build has several GB"
    check_timeout_s = 120.0
    check_code = (
        "import torch, safetensors, msgspec, gguf; cuda = torch.cuda.is_available(); "
        "where = torch.cuda.get_device_name(0) if cuda else f'{torch.get_num_threads()} CPU threads'; "
        "x = torch.ones(64, 64); assert float((x @ x).sum()) == 64.0**3; print('LLMRUN computes on', where)"
    )

    def requirements(self, wish: Wish) -> list[str]:
        """See PythonRecipe."""
        return [pin.requirement(wish.version if pin.package == "torch" else None) for pin in NATIVE]

    def mend(self, new: NewEnvironment, wish: Wish, say: Say) -> None:
        """Compile the kernels now, so that the first run need not; without a compiler torch's own serve."""
        say("compiling kernels for this CPU")
        try:
            library_path()
        except BuildFailed as problem:
            say(f"kernels for this CPU could not be compiled, so that out=native will be slower on it: {problem}")


RECIPE = NativeRecipe()
