"""What tests above the engines share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model_cards.card import ModelCard
from tests.runner.fakes import make_card
from tests.runner.net import daemons


@pytest.fixture(scope="session")
def toy_card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    """A card with a real byte-level tokenizer and a ChatML template (tests/runner/fakes.py)."""
    return make_card(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def nats(monkeypatch: pytest.MonkeyPatch) -> Iterator[daemons.Daemon]:
    """A real nats-server on loopback, the one that NATS_SERVER names."""
    daemon = daemons.nats()
    daemon.start()
    monkeypatch.setenv("NATS_SERVER", f"nats://127.0.0.1:{daemon.port}")
    yield daemon
    daemon.kill()
