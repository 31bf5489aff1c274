"""Drives a LlamaCppEngine in this thread (see step_driver.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_cards.card import ModelCard
from runner.engines.llamacpp.engine import LlamaCppEngine
from tests.runner.engines.step_driver import GREEDY, Answer, StepDriver

__all__ = ["GREEDY", "Answer", "Driver"]


class Driver(StepDriver):
    """Of a GGUF file."""

    engine: LlamaCppEngine

    def __init__(self, model: Path, card: ModelCard | None = None, **options: Any) -> None:
        card = card or ModelCard(name=model.stem, source=str(model), kind="gguf", path=str(model))
        super().__init__(LlamaCppEngine(), "llamacpp", card, **options)
