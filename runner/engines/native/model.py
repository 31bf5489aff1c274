"""From a card to a model with weights: its configuration, its family, its checkpoint. Knows no ranks and no cache."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model_cards.card import ModelCard
from model_cards.hf_card import read_json
from runner.engines.native.checkpoint import TensorSource, open_folder
from runner.engines.native.layers.decoder import Decoder
from runner.engines.native.loader import load
from runner.engines.native.models import Family, find_family
from runner.engines.native.packed import Packer, open_packed
from runner.engines.native.parallel import Parallel
from runner.engines.native.quantize import Quantizer
from runner.engines.native.settings import Settings
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names
from runner.errors import EngineStartFailed


def read_config(card: ModelCard) -> dict[str, Any]:
    """config.json of a Hugging Face folder, or the same made from a GGUF file's metadata. Raises EngineStartFailed."""
    if card.path is None:
        raise EngineStartFailed(f"{card.name} has no weights on this machine; out=native needs a folder or a GGUF file")
    if card.kind == "gguf":
        from runner.engines.native.gguf_weights import GgufSource

        return GgufSource(Path(card.path)).config
    config = read_json(Path(card.path) / "config.json")
    if not isinstance(config, dict):
        raise EngineStartFailed(f"{card.path} has no config.json that is an object")
    inner = config.get("text_config")
    return {**config, **inner, "model_type": inner.get("model_type", config.get("model_type"))} if inner else config


def build_model(
    card: ModelCard,
    config: dict[str, Any],
    *,
    parallel: Parallel,
    dtype: torch.dtype,
    device: torch.device,
    settings: Settings,
    context_length: int,
    progress: Callable[[str, float | None], None],
) -> Decoder:
    """The loaded model. Raises EngineStartFailed for an architecture that cannot be run, ModelFileError."""
    family = find_family(config) if settings.implementation != "transformers" else None
    if family is None:
        _refuse_quantised(config, settings)
        from runner.engines.native.models._transformers import build_transformers

        return build_transformers(
            card,
            config,
            parallel=parallel,
            dtype=dtype,
            device=device,
            context_length=context_length,
            progress=progress,
        )
    source, spec, names = _open(card, family, config)
    _check(spec, context_length)
    model = Decoder(spec, parallel, dtype, device)
    source = open_packed(source, config)
    packer, replace = Packer(model, source, names), Quantizer(settings.quantize) if settings.quantize else None
    load(model, source, names, progress=progress, context_length=context_length, take=packer, replace=replace)
    if packer.dense:
        sys.stderr.write(f"native: these quantised layers are made dense, and larger: {', '.join(packer.dense)}\n")
    return model


def _refuse_quantised(config: dict[str, Any], settings: Settings) -> None:
    what = f"--quantize {settings.quantize}" if settings.quantize else ""
    what = what or ("its quantised checkpoint" if config.get("quantization_config") else "")
    if what:
        raise EngineStartFailed(
            f"{config.get('model_type')} runs through transformers' own modules here, which cannot take {what}; leave "
            "--quantize out and take a checkpoint in full precision, or a GGUF file with out=llamacpp"
        )


def _check(spec: DecoderSpec, context_length: int) -> None:
    if spec.position == "learned" and context_length > spec.max_position:
        raise EngineStartFailed(
            f"--context-length {context_length:,}: this model has learned positions for {spec.max_position:,} tokens; "
            "that is the most"
        )


def _open(card: ModelCard, family: Family, config: dict[str, Any]) -> tuple[TensorSource, DecoderSpec, Names]:
    """The weights of a card, and what is in them. Raises ModelFileError, ModelNotFound."""
    assert card.path is not None
    if card.kind == "gguf":
        from runner.engines.native.gguf_weights import GgufSource

        source = GgufSource(Path(card.path))
        return source, *source.adapt(family.spec(config))
    return open_folder(Path(card.path)), family.spec(config), family.names
