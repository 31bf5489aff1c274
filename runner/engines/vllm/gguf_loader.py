"""Child side: a load format of vLLM's for GGUF files, and the folder of configuration that goes with one.

Registered by vLLM's own `register_model_loader`; the weights are gguf_weights.py's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.engines.vllm.gguf_folder import make_folder
from runner.engines.vllm.gguf_weights import GgufWeights
from runner.engines.vllm.settings import GGUF_FORMAT
from runner.errors import EngineStartFailed

_FOLDER = "gguf"


def prepare(flags: list[str], folder: Path) -> list[str]:
    """vLLM's flags, changed where they name a GGUF file as the model: a folder below `folder` has its configuration.

    Raises EngineStartFailed, CardError.
    """
    if GGUF_FORMAT not in flags:
        return flags
    try:
        import gguf  # noqa: F401 (the message before vllm is imported, which takes seconds)
    except ImportError as error:
        raise EngineStartFailed("reading GGUF files needs the package gguf in vLLM's environment") from error
    _register()
    at = flags.index("--model") + 1
    path = Path(flags[at])
    if path.is_dir():
        return flags
    own = folder / _FOLDER
    own.mkdir(exist_ok=True)
    make_folder(path, own)
    return [*flags[:at], str(own), *flags[at + 1 :]]


def _register() -> None:
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    @register_model_loader(GGUF_FORMAT)
    class GgufLoader(BaseModelLoader):  # type: ignore[misc]
        """See vLLM's BaseModelLoader."""

        def download_model(self, model_config: Any) -> None:
            """The file is here."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Into a model that vLLM has made."""
            weights = GgufWeights(Path(self.load_config.model_loader_extra_config["path"]))
            model.load_weights(weights.read(model_config.hf_config))
