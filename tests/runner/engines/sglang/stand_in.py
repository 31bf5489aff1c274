"""Engines on the stand-in for sglang (fake/)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from model_cards.resolve import resolve
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.process import ProcessEngine
from runner.engines.sglang import CHILD
from runner.engines.sglang.settings import read_settings

FAKE = Path(__file__).parent / "fake"


def make(**options: Any) -> ProcessEngine:
    """Not started. As runner.engines.sglang.make_engine, with the stand-in on the child's path."""
    fixed: dict[str, Any] = {"device": "cpu", "context_length": 1030, "start_timeout_s": 60.0}
    spec = EngineSpec(name="sglang", card=resolve("demo-hf"), options=EngineOptions(**(fixed | options)))
    path = os.pathsep.join(part for part in (str(FAKE), os.environ.get("PYTHONPATH", "")) if part)
    env = {**read_settings(spec).env, "PYTHONPATH": path}
    return ProcessEngine(spec, CHILD, shape="async", python=sys.executable, env=env)
