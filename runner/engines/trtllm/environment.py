"""Which Python runs out=trtllm: one that has tensorrt_llm (see python_environment.py for the order of the search)."""

from __future__ import annotations

from runner.engines.python_environment import PythonEnvironment

ENVIRONMENT = PythonEnvironment(
    engine="trtllm", library="TensorRT-LLM", packages=("tensorrt_llm",), distributions=("tensorrt_llm",)
)
