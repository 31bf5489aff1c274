"""The commands that make a TensorRT-LLM engine of a model, for the installed release. Runs nothing.

    1.0 to 1.2   LLM(model).save(OUT), which needs nothing but the wheel (saver.py)
    0.x          convert_checkpoint.py of the examples for this family, then trtllm-build; also 1.x with --examples
    checkpoint   trtllm-build alone (a folder that convert_checkpoint.py or the quantizer wrote)

Sources: docs of NVIDIA/TensorRT-LLM 0.8 to 1.2 (convert_checkpoint.py, trtllm-build; max_output_len became max_seq_len
with 0.11), docs/source/legacy/tensorrt-backend-removal.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from runner.engines.trtllm.release import LAST_WITH_ENGINES, Release
from runner.errors import EngineStartFailed, UsageError

_FIRST_CONVERTING = (0, 8)
_FIRST_MAX_SEQ_LEN = (0, 11)
_SAVER = Path(__file__).with_name("saver.py")
_PLUGIN_DTYPES = ("float16", "bfloat16", "float32")


class BuildWish(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked of `llmrun build-engine`; None is TensorRT-LLM's own choice."""

    model: str
    """A Hugging Face folder, or a TensorRT-LLM checkpoint."""
    dtype: str = "auto"
    tp_size: int = 1
    pp_size: int = 1
    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    max_beam_width: int | None = None
    examples: str | None = None
    """The folder with convert_checkpoint.py of this family."""
    build_args: tuple[str, ...] = ()
    """Passed to trtllm-build as they are."""


class Step(msgspec.Struct, frozen=True):
    """One command."""

    label: str
    command: tuple[str, ...]


def plan(wish: BuildWish, release: Release, python: str, out: Path, work: Path) -> list[Step]:
    """Steps that end with the engine in `out`; `work` is for what lies between.

    Raises UsageError for what makes no sense, EngineStartFailed for a release that builds no engines.
    """
    _check(wish, release)
    if is_checkpoint(Path(wish.model)):
        return [_build(wish, release, python, Path(wish.model), out)]
    if wish.examples is None and release.number >= (1, 0):
        if wish.build_args:
            raise UsageError("--build-arg is for trtllm-build, which TensorRT-LLM 1.x runs with --examples only")
        return [_save(wish, python, out)]
    checkpoint = work / "checkpoint"
    return [_convert(wish, python, checkpoint), _build(wish, release, python, checkpoint, out)]


def is_checkpoint(folder: Path) -> bool:
    """Whether convert_checkpoint.py wrote it: `architecture` and `dtype` in config.json (llmapi's get_model_format)."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "architecture" in config and "dtype" in config


def _check(wish: BuildWish, release: Release) -> None:
    if not release.runs_engines:
        raise EngineStartFailed(
            f"TensorRT-LLM {release.version} builds no engines: NVIDIA removed the TensorRT backend with 1.3",
            hint=f"llmrun engines install trtllm --version {LAST_WITH_ENGINES}; or run the folder itself: "
            f"llmrun out=trtllm {wish.model}",
        )
    if release.number < _FIRST_CONVERTING:
        raise EngineStartFailed(
            f"TensorRT-LLM {release.version} is too old: llmrun builds engines with 0.8 or later",
            hint=f"llmrun engines install trtllm --version {LAST_WITH_ENGINES}",
        )
    if not (Path(wish.model) / "config.json").is_file():
        raise UsageError(f"{wish.model} has no config.json; give a Hugging Face folder or a TensorRT-LLM checkpoint")
    if wish.max_input_len and wish.max_seq_len and wish.max_seq_len <= wish.max_input_len:
        raise UsageError(
            f"--max-seq-len counts prompt and answer: {wish.max_seq_len} leaves no room beside --max-input-len "
            f"{wish.max_input_len}"
        )
    if wish.examples is not None and not (Path(wish.examples) / "convert_checkpoint.py").is_file():
        raise UsageError(f"--examples {wish.examples}: there is no convert_checkpoint.py")
    if wish.examples is None and release.number < (1, 0) and not is_checkpoint(Path(wish.model)):
        raise UsageError(
            f"TensorRT-LLM {release.version} converts models with scripts that are not in its wheel: --examples "
            f"FOLDER, such as examples/llama of its repository at v{release.version}"
        )


def _save(wish: BuildWish, python: str, out: Path) -> Step:
    asked = {name: value for name, value in msgspec.structs.asdict(wish).items() if value is not None}
    for name in ("examples", "build_args"):
        asked.pop(name, None)
    return Step("building the engine", (python, str(_SAVER), json.dumps(asked), str(out)))


def _convert(wish: BuildWish, python: str, checkpoint: Path) -> Step:
    command = [python, str(Path(wish.examples or "") / "convert_checkpoint.py"), "--model_dir", wish.model]
    command += ["--output_dir", str(checkpoint), "--dtype", wish.dtype, "--tp_size", str(wish.tp_size)]
    if wish.pp_size > 1:
        command += ["--pp_size", str(wish.pp_size)]
    return Step("converting the weights", tuple(command))


def _build(wish: BuildWish, release: Release, python: str, checkpoint: Path, out: Path) -> Step:
    command = [str(Path(python).with_name("trtllm-build")), "--checkpoint_dir", str(checkpoint)]
    command += ["--output_dir", str(out), "--gemm_plugin", wish.dtype if wish.dtype in _PLUGIN_DTYPES else "auto"]
    for name in ("max_batch_size", "max_input_len", "max_num_tokens", "max_beam_width"):
        if (value := getattr(wish, name)) is not None:
            command += [f"--{name}", str(value)]
    command += _length(wish, release)
    if wish.tp_size * wish.pp_size > 1:
        command += ["--workers", str(wish.tp_size * wish.pp_size)]
    return Step("building the engine", (*command, *wish.build_args))


def _length(wish: BuildWish, release: Release) -> list[str]:
    """Releases before 0.11 count the answer alone."""
    if wish.max_seq_len is None:
        return []
    if release.number >= _FIRST_MAX_SEQ_LEN:
        return ["--max_seq_len", str(wish.max_seq_len)]
    if wish.max_input_len is None:
        raise UsageError(f"TensorRT-LLM {release.version} needs --max-input-len together with --max-seq-len")
    return ["--max_output_len", str(wish.max_seq_len - wish.max_input_len)]
