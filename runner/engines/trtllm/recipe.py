"""How out=trtllm is installed: NVIDIA's wheel, from NVIDIA's own index (the package on PyPI only points there).

Written from NVIDIA's installation guide; not run here, where neither the index nor a GPU can be reached.
"""

from __future__ import annotations

from runner.engines.environments import Wish
from runner.engines.pins import TRTLLM
from runner.engines.python_recipe import PythonRecipe
from runner.engines.trtllm.environment import ENVIRONMENT


class TrtllmRecipe(PythonRecipe):
    """See environments.Recipe."""

    environment = ENVIRONMENT
    takes = frozenset({"cuda", "version", "python"})
    note = "many minutes; 15 GB; Python 3.10 or 3.12, OpenMPI and an NVIDIA GPU"
    check_code = "import tensorrt_llm; print('LLMRUN imports', tensorrt_llm.__version__)"

    def requirements(self, wish: Wish) -> list[str]:
        """See PythonRecipe."""
        return [TRTLLM.requirement(wish.version)]


RECIPE = TrtllmRecipe()
