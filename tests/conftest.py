"""A clean home for every test, and the shared data where it is present."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from runner import paths
from runner.engines.llamacpp.library import LIBRARY_VARIABLE, find_library

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and the programs that tests start would inherit that

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

LLAMACPP_LIBRARY = find_library()
"""Looked up before any test has another home."""


NATIVE_KERNELS = paths.cache_dir() / "kernels"
"""Compiled once for all tests."""


@pytest.fixture(autouse=True)
def clean_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's home, configuration or caches, or the network's Hub."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LLMRUN_HOME", str(home / "llmrun"))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LLMRUN_NATIVE_KERNELS", str(NATIVE_KERNELS))
    for name in (
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HUB_CACHE",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        *(name for name in os.environ if name.startswith(("ETCD_", "NATS_", "DYN_"))),
    ):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ../shared/data; skips where users do not have it."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data here")
    return path


@pytest.fixture
def llamacpp_library(monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed llama.cpp library, which this process and its children then use; skips where there is none."""
    if LLAMACPP_LIBRARY is None:
        pytest.skip("no llama.cpp library here: llmrun engines install llamacpp")
    monkeypatch.setenv(LIBRARY_VARIABLE, str(LLAMACPP_LIBRARY))
    return LLAMACPP_LIBRARY
