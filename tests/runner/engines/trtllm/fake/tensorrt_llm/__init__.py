"""A stand-in for TensorRT-LLM in tests: its names, parameters, defaults and errors, over a toy model.

The wheel cannot be had where this project is tested. VERSION is written by the test that makes an environment.
"""

from __future__ import annotations

from pathlib import Path

from .llm import BaseLLM, EngineLLM
from .signatures import TABLE, record

__version__ = (Path(__file__).parent / "VERSION").read_text().strip()
_IS_OLD = __version__.startswith("0.")
LLM = EngineLLM if _IS_OLD else BaseLLM
SamplingParams = record("SamplingParams", TABLE["OLD_SamplingParams"] if __version__ < "0.13" else None)
BuildConfig = record("BuildConfig")
