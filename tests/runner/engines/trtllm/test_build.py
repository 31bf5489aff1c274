"""llmrun build-engine: the commands for each release, and builds by the stand-ins of TensorRT-LLM's own programs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from runner.cli import main
from runner.engines.trtllm.build_plan import BuildWish, plan
from runner.engines.trtllm.release import Release
from runner.errors import EngineStartFailed, UsageError
from tests.runner.engines.trtllm.environments import DEMO, FAKE, make_environment

OUT, WORK = Path("/out"), Path("/work-folder")


def commands(version: str, *, has_engine_module: bool = True, **wish: Any) -> list[str]:
    release = Release(version=version, has_engine_module=has_engine_module)
    steps = plan(BuildWish(model=str(DEMO), **wish), release, "/env/bin/python", OUT, WORK)
    return [shlex.join(step.command) for step in steps]


def test_a_wheel_of_1_x_builds_alone() -> None:
    (command,) = commands("1.2.1", dtype="float16", tp_size=2, max_batch_size=8, max_input_len=100, max_seq_len=200)
    python, saver, asked, out = shlex.split(command)
    assert (python, Path(saver).name, out) == ("/env/bin/python", "saver.py", "/out")
    wanted = {"tp_size": 2, "pp_size": 1, "max_batch_size": 8, "max_input_len": 100, "max_seq_len": 200}
    assert json.loads(asked) == {"model": str(DEMO), "dtype": "float16", **wanted}


def test_0_x_converts_then_builds() -> None:
    sizes: dict[str, Any] = {"max_batch_size": 8, "max_input_len": 100, "max_seq_len": 150}
    convert, build = commands("0.20.0", dtype="float16", tp_size=2, examples=str(FAKE), **sizes)
    assert convert == (
        f"/env/bin/python {FAKE}/convert_checkpoint.py --model_dir {DEMO} --output_dir /work-folder/checkpoint "
        f"--dtype float16 --tp_size 2"
    )
    assert build == (
        "/env/bin/trtllm-build --checkpoint_dir /work-folder/checkpoint --output_dir /out --gemm_plugin float16 "
        "--max_batch_size 8 --max_input_len 100 --max_seq_len 150 --workers 2"
    )
    _, old = commands("0.9.0", examples=str(FAKE), build_args=("--paged_kv_cache", "enable"), **sizes)
    assert "--max_output_len 50" in old and "--max_seq_len" not in old and old.endswith("--paged_kv_cache enable")


@pytest.mark.parametrize(
    ("version", "wish", "words"),
    [
        ("0.20.0", {}, "--examples"),
        ("0.20.0", {"examples": "/nowhere"}, "no convert_checkpoint.py"),
        ("1.2.1", {"max_input_len": 10, "max_seq_len": 10}, "leaves no room"),
        ("1.2.1", {"build_args": ("--x",)}, "--examples only"),
        ("0.9.0", {"examples": str(FAKE), "max_seq_len": 10}, "needs --max-input-len"),
    ],
)
def test_what_makes_no_sense_is_refused(version: str, wish: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        commands(version, **wish)


@pytest.mark.parametrize(("version", "words"), [("1.3.0rc22", "builds no engines"), ("0.7.1", "too old")])
def test_a_release_that_builds_no_engines_says_which_does(version: str, words: str) -> None:
    with pytest.raises(EngineStartFailed, match=words) as caught:
        commands(version, has_engine_module=False)
    assert "llmrun engines install trtllm --version 1.2.1" in caught.value.hint


@pytest.mark.parametrize("version", ["1.2.1", "0.20.0"])
def test_a_build_makes_a_folder_that_out_trtllm_takes(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = make_environment(tmp_path / "env", version)
    out = tmp_path / "made" / "engine"
    words = ["build-engine", str(DEMO), str(out), "--engine-python", python, "--tp-size", "2", "--dtype", "float16"]
    words += ["--max-batch-size", "4", "--max-input-len", "100", "--max-seq-len", "300"]
    if version < "1":
        words += ["--examples", str(FAKE)]
    assert main([*words, "--dry-run"]) == 0
    assert str(out) in capsys.readouterr().out and not out.exists()
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "rank0.engine", "rank1.engine"]
    assert [path.name for path in out.parent.iterdir()] == ["engine"]
    config = json.loads((out / "config.json").read_text())
    assert config["version"] == version and config["build_config"]["max_seq_len"] == 300
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_failed_build_tells_why_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = make_environment(tmp_path / "env", "0.20.0")
    out = tmp_path / "made" / "engine"
    words = ["build-engine", str(DEMO), str(out), "--engine-python", python, "--examples", str(FAKE)]
    assert main([*words, "--max-batch-size", "666"]) == 1
    told = capsys.readouterr()
    assert told.out == "" and "out of memory" in told.err and "there is not enough memory" in told.err
    assert list(out.parent.iterdir()) == []
