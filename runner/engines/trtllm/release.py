"""Release: an installed TensorRT-LLM, told from its files, and whether it can run a model. Imports nothing of it.

0.x          tensorrt_llm.LLM runs engines
1.0 to 1.2   tensorrt_llm._tensorrt_engine.LLM runs engines, tensorrt_llm.LLM (PyTorch) Hugging Face folders
later        PyTorch only: the engine backend was removed in the course of 1.3 (docs/source/legacy/
             tensorrt-backend-removal.md of NVIDIA/TensorRT-LLM)
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from model_cards.card import ModelCard
from runner.errors import EngineStartFailed

LAST_WITH_ENGINES = "1.2.1"
_VERSION = re.compile(r"(\d+)\.(\d+)")
_SITES = ("lib/python3*/site-packages", "lib/python3*/dist-packages", "Lib/site-packages")


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One installed TensorRT-LLM."""

    version: str
    has_engine_module: bool
    """Whether tensorrt_llm/_tensorrt_engine is there."""

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor; (0, 0) if the version cannot be read."""
        match = _VERSION.match(self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    @property
    def runs_engines(self) -> bool:
        """Whether it has the TensorRT backend."""
        return self.number[0] == 0 or self.has_engine_module

    @property
    def runs_folders(self) -> bool:
        """Whether its LLM is the PyTorch one."""
        return self.number >= (1, 0)


def installed_release(python: str) -> Release | None:
    """That of a Python's own environment; None where its files are elsewhere (a system package, a source tree)."""
    root = Path(python).parent.parent
    for site in (found for pattern in _SITES for found in sorted(root.glob(pattern))):
        package = site / "tensorrt_llm"
        for about in sorted(site.glob("tensorrt_llm-*.dist-info")):
            version = about.name.removesuffix(".dist-info").partition("-")[2]
            return Release(version=version, has_engine_module=(package / "_tensorrt_engine").is_dir())
    return None


def check_fit(release: Release, card: ModelCard) -> None:
    """Raises EngineStartFailed, with the remedy, for a model that this release cannot run."""
    if card.kind == "trtllm":
        check_engine(release, card)
    elif not release.runs_folders:
        raise EngineStartFailed(
            f"TensorRT-LLM {release.version} runs compiled engines only; {card.name} is a Hugging Face folder",
            hint=f"llmrun build-engine {card.path} OUT, or a newer TensorRT-LLM (1.0 on runs folders)",
        )


def check_engine(release: Release, card: ModelCard) -> None:
    """As check_fit, of a compiled engine: the backend is there, and it is the release that built it."""
    if not release.runs_engines:
        raise EngineStartFailed(
            f"TensorRT-LLM {release.version} cannot run compiled engines: they went with 1.3",
            hint=f"llmrun engines install trtllm --version {LAST_WITH_ENGINES}, or give the Hugging Face folder that "
            f"the engine was built from",
        )
    built = str(card.details.get("version") or "")
    match = _VERSION.match(built)
    if match and (int(match[1]), int(match[2])) != release.number:
        raise EngineStartFailed(
            f"the engine {card.path} was built by TensorRT-LLM {built}, and {release.version} is installed: an engine "
            f"runs only in the release that built it",
            hint=f"build it again (llmrun build-engine MODEL OUT), or llmrun engines install trtllm --version {built}",
        )
