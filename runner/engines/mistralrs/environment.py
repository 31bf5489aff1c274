"""Which Python runs out=mistralrs: one that has mistralrs (see python_environment.py for the order of the search)."""

from __future__ import annotations

from runner.engines.python_environment import PythonEnvironment

ENVIRONMENT = PythonEnvironment(
    engine="mistralrs", library="mistral.rs", packages=("mistralrs",), distributions=("mistralrs", "mistralrs_cuda")
)
