"""How out=mistralrs is installed: one wheel with mistral.rs for the CPU, and what the child of llmrun imports.

The index has no current wheel for CUDA; one that was built from source is used with --engine-python.
"""

from __future__ import annotations

from runner.engines.environments import Wish
from runner.engines.mistralrs.environment import ENVIRONMENT
from runner.engines.pins import MISTRALRS, MISTRALRS_NEEDS
from runner.engines.python_recipe import PythonRecipe


class MistralrsRecipe(PythonRecipe):
    """See environments.Recipe."""

    environment = ENVIRONMENT
    takes = frozenset({"cpu", "version", "python"})
    note = "half a minute; 100 MB"
    check_code = "import mistralrs; mistralrs.Runner; print('LLMRUN imports')"

    def requirements(self, wish: Wish) -> list[str]:
        """See PythonRecipe."""
        return [MISTRALRS.requirement(wish.version), *(pin.requirement() for pin in MISTRALRS_NEEDS)]


RECIPE = MistralrsRecipe()
