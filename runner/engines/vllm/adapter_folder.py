"""A PEFT folder: its rank, and whether its weights are of the model that runs.

vLLM (0.32) loads an adapter of a smaller model, or of one with more layers, without a word, and answers wrongly. Reads
headers only; knows nothing of engines.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from model_cards.card import ModelCard
from runner.errors import RequestError, UnknownAdapter

_MAX_BYTES = 1 << 24
_FIELD = "lora_path"
_WEIGHT = re.compile(r"base_model\.model\.model\.layers\.(\d+)\..*\.(\w+)\.lora_([AB])\.(?:\w+\.)?weight")
"""Of a decoder that is the whole model; others are not looked at."""
_READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Their inputs are hidden states, ..."""
_WRITERS = ("o_proj", "down_proj")
"""... and the outputs of these."""


class ModelShape(NamedTuple):
    """0 is unknown."""

    num_layers: int
    hidden_size: int

    @classmethod
    def of(cls, card: ModelCard) -> ModelShape:
        """As the card's details tell it."""
        found = [card.details.get(name) for name in ("layers", "hidden_size")]
        return cls(*(value if isinstance(value, int) else 0 for value in found))


def read_rank(path: str, model: ModelShape) -> tuple[str, int]:
    """Absolute path and rank of a folder. Blocking. Raises RequestError (UnknownAdapter where there is none)."""
    try:
        folder = Path(path).expanduser().absolute()
        config = folder / "adapter_config.json"
        if not path or not config.is_file():
            raise UnknownAdapter(f"there is no LoRA adapter at {path!r} (no adapter_config.json)", field=_FIELD)
        with config.open("rb") as file:
            rank = json.loads(file.read(_MAX_BYTES))["r"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        message = f"the adapter_config.json in {path!r} has no readable rank (r): {error!r}"
        raise RequestError(message, field=_FIELD) from None
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise RequestError(f"the adapter_config.json in {path!r} has the rank {rank!r}, which is none", field=_FIELD)
    misfit = _find_misfit(folder, model)
    if misfit is not None:
        raise RequestError(f"the adapter in {folder} is of another model: {misfit}", field=_FIELD)
    return str(folder), rank


def _find_misfit(folder: Path, model: ModelShape) -> str | None:
    """What does not fit; None also where the file is no safetensors (vLLM says then what it cannot read)."""
    for name, shape in _shapes(folder / "adapter_model.safetensors").items():
        match = _WEIGHT.fullmatch(name)
        if match is None or len(shape) != 2:
            continue
        layer, module, part = int(match[1]), match[2], match[3]
        if model.num_layers and layer >= model.num_layers:
            return f"it has a layer {layer}, the model has {model.num_layers}"
        is_reader, is_writer = module in _READERS and part == "A", module in _WRITERS and part == "B"
        size = shape[1] if is_reader else shape[0]
        if model.hidden_size and (is_reader or is_writer) and size != model.hidden_size:
            return f"its {module} is for a hidden size of {size}, the model's is {model.hidden_size}"
    return None


def _shapes(path: Path) -> dict[str, list[int]]:
    """Of a safetensors file, by its header (https://huggingface.co/docs/safetensors); empty where it has none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if length <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    found = header.items() if isinstance(header, dict) else ()
    shapes: dict[str, Any] = {name: one.get("shape") for name, one in found if isinstance(one, dict)}
    return {name: shape for name, shape in shapes.items() if _is_shape(shape)}


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(size, int) for size in value)
