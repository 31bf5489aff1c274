"""What tests above the engines share."""

from __future__ import annotations

import pytest

from model_cards.card import ModelCard
from tests.runner.fakes import make_card


@pytest.fixture(scope="session")
def toy_card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    """A card with a real byte-level tokenizer and a ChatML template (tests/runner/fakes.py)."""
    return make_card(tmp_path_factory.mktemp("toy"))
