"""Models that are not there, not whole or not known: one line that says so, and nothing left running."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.program import FAILURE, Program

pytestmark = pytest.mark.timeout(300)


def test_no_such_file(llmrun: Program, toy: Path) -> None:
    llmrun(toy.with_name("tpy.gguf"), "hi").failed(FAILURE, "tpy.gguf", "no such file", "did you mean", "toy.gguf?")


def test_no_such_folder_is_no_download(llmrun: Program, tmp_path: Path) -> None:
    done = llmrun("./models/nothing", "hi", cwd=tmp_path).failed(FAILURE, "models/nothing: no such file or folder")
    assert "HF_HUB" not in done.err


def test_a_folder_with_no_config(llmrun: Program, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    llmrun(tmp_path, "hi").failed(FAILURE, "no config.json", "there is: notes.txt", "path of a .gguf file")


@pytest.mark.parametrize("engine", ["echo_core", "llamacpp"])
def test_a_directory_given_for_a_gguf(llmrun: Program, tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "model.gguf"
    folder.mkdir()
    llmrun(f"out={engine}", folder, "hi").failed(FAILURE, "model.gguf is not a model folder", "path of a .gguf file")


def _cut(size: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:size] if size >= 0 else data[: len(data) + size]


BROKEN: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty": (_cut(0), ("it has 0 bytes",)),
    "cut in the magic": (_cut(3), ("it has 3 bytes",)),
    "cut in the header": (_cut(20), ("it has 20 bytes", "a header alone has 24")),
    "cut in the metadata": (_cut(20_000), ("tokenizer.ggml", "than the rest of the file can hold")),
    "cut in the tensors": (_cut(-100_000), ("tensor 'output.weight' ends at byte", "download it again")),
    "cut by one byte": (_cut(-1), ("tensor 'output.weight' ends at byte", "download it again")),
    "wrong magic": (lambda data: b"GGML" + data[4:], ("b'GGML'", "begins with b'GGUF'")),
    "an error page": (lambda data: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", ("b'<!DO'", "b'GGUF'")),
    "an unknown version": (lambda data: data[:4] + b"\x63\0\0\0" + data[8:], ("version 99",)),
    "big-endian": (lambda data: data[:4] + b"\0\0\0\x03" + data[8:], ("big-endian",)),
    "a huge count": (lambda data: data[:16] + b"\xff" * 8 + data[24:], ("claims",)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_corrupt_gguf(llmrun: Program, toy: Path, tmp_path: Path, name: str) -> None:
    spoil, telling = BROKEN[name]
    model = tmp_path / "broken.gguf"
    model.write_bytes(spoil(toy.read_bytes()))
    llmrun(model, "hi").failed(FAILURE, "broken.gguf cannot be read as GGUF", *telling)


@pytest.mark.llamacpp
def test_flipped_bytes_in_the_tensors(llmrun: Program, toy: Path, tmp_path: Path, needs_llamacpp: None) -> None:
    """Not to be seen before the model computes: then it is NaN, which is an error and no answer."""
    data, chance = bytearray(toy.read_bytes()), random.Random(0)
    for _ in range(20_000):
        data[chance.randrange(len(data) // 2, len(data))] = chance.randrange(256)
    model = tmp_path / "flipped.gguf"
    model.write_bytes(data)
    llmrun(model, "hi", "--temp", "0").failed(FAILURE, "no usable logits", "GGUF file may be broken")


@pytest.mark.llamacpp
def test_an_unknown_architecture(llmrun: Program, toy: Path, tmp_path: Path, needs_llamacpp: None) -> None:
    data = toy.read_bytes().replace(b"llama.", b"nosml.")
    place = data.index(b"general.architecture") + len("general.architecture") + 12
    assert data[place : place + 5] == b"llama"
    model = tmp_path / "new.gguf"
    model.write_bytes(data[:place] + b"nosml" + data[place + 5 :])
    llmrun(model, "hi").failed(FAILURE, "llamacpp did not start", "new.gguf", "unknown model architecture: 'nosml'")


@pytest.mark.parametrize("source", ["org/repo", "org/repo:Q4_K_M", "hf://org/repo"])
def test_a_hub_id_offline(llmrun: Program, source: str) -> None:
    llmrun(source, "hi").failed(
        FAILURE, "org/repo is not in the cache", "HF_HUB_OFFLINE is set", "llmrun pull org/repo"
    )


def test_a_name_that_is_no_text(llmrun: Program) -> None:
    llmrun(b"./m\xff\xfe.gguf", "hi").failed(FAILURE, ".gguf", "no such file")


@pytest.mark.llamacpp
def test_an_adapter_that_is_not_there(llmrun: Program, toy: Path, needs_llamacpp: None) -> None:
    for name in ("none.gguf", "x" * 300):
        llmrun(toy, "hi", "--lora", name).failed(FAILURE, f"there is no file {name}", "NAME=PATH")


@pytest.mark.llamacpp
def test_an_adapter_that_is_none(llmrun: Program, toy: Path, needs_llamacpp: None) -> None:
    llmrun(toy, "hi", "--lora", toy).failed(FAILURE, "adapter", "toy")
