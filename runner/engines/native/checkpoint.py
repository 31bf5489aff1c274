"""TensorSource: the tensors of a checkpoint by name, read in slices; here of Hugging Face folders.

Owns files and their faults, not what a tensor is for. Files are mapped: a slice costs only its own bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_cards.errors import ModelFileError, ModelNotFound
from model_cards.hf_card import read_json
from model_cards.hf_weights import weight_files


class TensorSource(Protocol):
    """A checkpoint."""

    def names(self) -> set[str]:
        """Every tensor there is."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading it."""

    def file(self, name: str) -> str:
        """The file it is in, for messages."""

    def read(self, name: str, index: tuple[slice, ...] = ()) -> Tensor:
        """The tensor or a part of it, on the CPU in its own dtype. Raises ModelFileError where the file is broken."""


class FolderSource:
    """The `.safetensors` or `pytorch_model*.bin` files of one model."""

    def __init__(self, files: list[Path]) -> None:
        self._files: dict[str, Path] = {}
        self._tensors: dict[str, Any] = {}
        """Tensors of mapped files, or safetensors' slices: both are read when they are indexed."""
        for path in files:
            found = _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
            self._tensors |= found
            self._files |= dict.fromkeys(found, path)

    def names(self) -> set[str]:
        """Of all files."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header."""
        tensor = self._tensors[name]
        return tuple(tensor.shape if isinstance(tensor, Tensor) else tensor.get_shape())

    def file(self, name: str) -> str:
        """Its path."""
        return str(self._files[name])

    def read(self, name: str, index: tuple[slice, ...] = ()) -> Tensor:
        """Reads only the slice."""
        try:
            return self._tensors[name][index]  # type: ignore[no-any-return]
        except (SafetensorError, OSError, ValueError) as error:
            raise _broken(self._files[name], error) from None


def _open_safetensors(path: Path) -> dict[str, Any]:
    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
        return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from None


def _open_bin(path: Path) -> dict[str, Tensor]:
    """Only tensors are unpickled, no code runs."""
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler and its zip reader raise
        raise _broken(path, error) from None
    if not isinstance(loaded, dict):
        raise ModelFileError(f"{path} holds a {type(loaded).__name__}; a dictionary of tensors is wanted")
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


def _broken(path: Path, error: BaseException) -> ModelFileError:
    text = str(error).strip().splitlines()
    reason = text[0] if text else type(error).__name__
    return ModelFileError(
        f"cannot read the weights in {path} ({path.stat().st_size if path.exists() else 0:,} bytes): {reason}; "
        "the file is incomplete or corrupt: download it again"
    )


def open_folder(folder: Path) -> TensorSource:
    """The weights of a Hugging Face folder. Raises ModelNotFound without any, ModelFileError for broken ones."""
    files = weight_files(folder)
    if not files:
        raise ModelNotFound(f"{folder} has no weights: neither *.safetensors nor pytorch_model*.bin")
    _check_index(folder, files)
    return FolderSource(files)


def _check_index(folder: Path, files: list[Path]) -> None:
    """Every file that the index of a sharded checkpoint lists is there."""
    kind = "model.safetensors" if files[0].suffix == ".safetensors" else "pytorch_model.bin"
    index = read_json(folder / f"{kind}.index.json")
    listed = index.get("weight_map") if isinstance(index, dict) else None
    names = set(listed.values()) if isinstance(listed, dict) else set()
    missing = sorted(names - {path.name for path in files})
    if missing:
        raise ModelFileError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files, among them {missing[0]}: the download is "
            "incomplete; download it again"
        )
