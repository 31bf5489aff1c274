"""Where out=vllm's Python is."""

from __future__ import annotations

from runner.engines.python_environment import PythonEnvironment
from runner.engines.vllm.settings import DISTRIBUTIONS

ENVIRONMENT = PythonEnvironment(engine="vllm", library="vLLM", packages=("vllm",), distributions=DISTRIBUTIONS)
