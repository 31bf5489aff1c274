"""Which Python runs out=sglang: one that has sglang (see python_environment.py for the order of the search)."""

from __future__ import annotations

from runner.engines.python_environment import PythonEnvironment

ENVIRONMENT = PythonEnvironment(engine="sglang", library="SGLang", packages=("sglang",), distributions=("sglang",))
