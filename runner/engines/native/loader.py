"""load(): fill a Decoder from a checkpoint, module by module; each rank reads only its own shard.

Owns the order of loading, dtype conversion and the errors that name a tensor. Knows neither families (models/) nor file
formats (checkpoint.py). A module's parameters get memory on the device when its turn comes, so a module that is
quantised at load (`replace`) never needs the whole model in full precision.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_cards.errors import ModelFileError
from runner.engines.native.checkpoint import TensorSource, open_folder
from runner.engines.native.layers.decoder import Decoder
from runner.engines.native.weights import Fill, Fillable, Located, Names, locate

_PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""8-bit floats mean nothing without the scales beside them."""
Progress = Callable[[str, float], None]
"""(phase, share done 0..1)"""
Replace = Callable[[str, nn.Module], nn.Module | None]
"""(path, module) -> another module to take its place (quantised), or None. `take` is asked before a module is filled,
`replace` after."""


def load(
    model: Decoder,
    source: Path | TensorSource,
    names: Names,
    *,
    progress: Progress | None = None,
    take: Replace | None = None,
    replace: Replace | None = None,
    context_length: int | None = None,
) -> None:
    """Fill `model` in place, on its own device and in its own dtype, and make its rotary tables.

    Raises ModelFileError naming tensor, file, got and wanted shape.
    """
    source = open_folder(source) if isinstance(source, Path) else source
    known = source.names()
    modules: list[tuple[str, Any]] = [item for item in model.named_modules() if isinstance(item[1], Fillable)]
    with torch.inference_mode():
        for done, (path, module) in enumerate(modules):
            if progress is not None:
                progress("loading weights", done / len(modules))
            better = take(path, module) if take is not None else None
            if better is None:
                _fill(path, module, model, source, known, names)
                better = replace(path, module) if replace is not None else None
            if better is not None:
                model.set_submodule(path, better)
        model.set_context(context_length or model.spec.max_position)
    if progress is not None:
        progress("loading weights", 1.0)


def layer_of(path: str) -> int | None:
    """The layer of a module's path, None for what is in none."""
    return int(path.split(".")[1]) if path.startswith("layers.") else None


def _fill(path: str, module: Any, model: Decoder, source: TensorSource, known: set[str], names: Names) -> None:
    """Give a module memory and values."""
    module.to_empty(device=model.device, recurse=False)
    layer = layer_of(path)
    for fill in module.fills():
        found = locate(fill, names, model.spec, layer, known)
        if found is None:
            raise _missing(fill, names, layer, known)
        fill.target.copy_(read_fill(fill, found, source))
    if hasattr(module, "finish"):
        module.finish()


def read_fill(fill: Fill, found: Located, source: TensorSource) -> Tensor:
    """The wanted part in canonical layout, in the file's dtype. Raises ModelFileError for another shape or dtype."""
    shape = source.shape(found.name)
    if shape != found.shape:
        raise ModelFileError(
            f"tensor {found.name} in {source.file(found.name)} has shape {list(shape)}; "
            f"config.json asks for {list(found.shape)}: the weights are of another model than the configuration"
        )
    # an array of rows is read as the range that holds them, then picked from
    ranges = tuple(
        part if isinstance(part, slice) else slice(int(part.min()), int(part.max()) + 1) for part in found.indices
    )
    tensor = source.read(found.name, ranges)
    if tensor.dtype not in _PLAIN:
        raise ModelFileError(
            f"tensor {found.name} in {source.file(found.name)} is {str(tensor.dtype).removeprefix('torch.')}; "
            "float32, float16 or bfloat16 is wanted: this kind of quantised checkpoint is not supported"
        )
    for dim, part in enumerate(found.indices):
        if not isinstance(part, slice):
            tensor = tensor.index_select(dim, torch.from_numpy(part - part.min()))
    tensor = tensor.squeeze(0) if fill.expert is not None and tensor.dim() > len(fill.spans) else tensor
    return tensor.t() if found.is_transposed else tensor


def _missing(fill: Fill, names: Names, layer: int | None, known: set[str]) -> ModelFileError:
    wanted = names.candidates(fill.source, fill.kind, layer, fill.expert) or [f"{fill.source}.{fill.kind}"]
    shape = [span.total for span in fill.spans]
    return ModelFileError(
        f"the weights lack tensor {wanted[0]} of shape {shape} ({fill.source} {fill.kind}"
        f"{f' of layer {layer}' if layer is not None else ''}); they hold {len(known):,} tensors, such as "
        f"{', '.join(sorted(known)[:3])}: a file is missing, or config.json is of another model"
    )
