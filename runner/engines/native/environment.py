"""Where out=native's Python is."""

from __future__ import annotations

from runner.engines.python_environment import PythonEnvironment

ENVIRONMENT = PythonEnvironment(
    engine="native", library="PyTorch", packages=("torch", "safetensors", "msgspec", "numpy")
)
