"""How many layers go to the GPU. A rule over sizes; knows no library calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from model_cards.gguf import GgufFile
from runner.engines.llamacpp.library import Device

ALL_LAYERS = -1
_ROOM = 1.15
"""Weights, a KV cache and compute buffers, relative to the weights."""
_BUFFER_BYTES = 512 * 2**20
_SPLIT = re.compile(r"-00001-of-(\d{5})\.gguf$")


class Offload(NamedTuple):
    """`gpu_layers` for llama.cpp (-1 is all) and whether all of the model lies on GPUs."""

    gpu_layers: int
    is_full: bool

    def describe(self, devices: Sequence[Device]) -> str:
        """For people: `CPU`, or the devices and how many layers they have."""
        if not devices or self.gpu_layers == 0:
            return "CPU"
        names = ", ".join(device.name for device in devices)
        return f"{names} ({'all' if self.gpu_layers < 0 else self.gpu_layers} layers)"


def choose_gpu_layers(
    asked: int | None, path: str, devices: Sequence[Device], *, num_layers: Callable[[], int]
) -> Offload:
    """All layers when they fit into the free memory of all devices, else as many as fit, else none."""
    if asked is not None:
        return Offload(asked, is_full=asked < 0 and bool(devices))
    if not devices:
        return Offload(0, is_full=False)
    weights = weight_bytes(Path(path))
    free = sum(device.free_bytes for device in devices) - _BUFFER_BYTES
    if weights * _ROOM <= free:
        return Offload(ALL_LAYERS, is_full=True)
    share = max(0.0, free / (weights * _ROOM))
    return Offload(int(num_layers() * share), is_full=False)


def count_layers(path: str) -> int:
    """As the GGUF file says; 0 when it does not."""
    with GgufFile.open(path) as file:
        return int(file.get(f"{file.architecture}.block_count", int, 0))


def weight_bytes(path: Path) -> int:
    """Size of a GGUF file, all its parts included."""
    split = _SPLIT.search(path.name)
    if split is None:
        return path.stat().st_size
    stem = path.name[: split.start()]
    return sum(part.stat().st_size for part in path.parent.glob(f"{stem}-?????-of-{split.group(1)}.gguf"))
