"""`llmrun engines`: what is printed, what is passed on, which exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.cli import main
from runner.engines import ENGINES, environments
from runner.engines.environments import EngineStatus

MISSING = EngineStatus(
    name="llamacpp", is_usable=False, detail="not installed", command="llmrun engines install llamacpp"
)
USABLE = EngineStatus(name="echo_core", is_usable=True, detail="repeats", models=("gguf", "none"))


def test_the_list_has_every_engine_and_the_command_that_helps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["engines", "--json"]) == 0
    told = {status["name"]: status for status in json.loads(capsys.readouterr().out)}
    assert set(told) == set(ENGINES)
    assert told["echo_core"]["is_usable"] and told["echo_core"]["models"] == ["gguf", "hf"]
    assert set(told["vllm"]) >= {"version", "where", "command", "summary", "level", "flags"}
    monkeypatch.setattr(environments, "list_engines", lambda: [MISSING, USABLE])
    assert main(["engines"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["llamacpp", "no", "not", "installed"]
    assert "→ llmrun engines install llamacpp" in lines[1]
    assert lines[2].split() == ["echo_core", "yes", "repeats"]
    assert lines[3].strip() == "runs GGUF files; needs no model"


def test_install_passes_on_what_was_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def install(name: str, **wish: Any) -> Path:
        seen.update(wish, name=name)
        wish["say"]("building")
        return tmp_path

    monkeypatch.setattr(environments, "install", install)
    assert main(["engines", "install", "llamacpp", "--prebuilt", "--cuda", "--version", "1.2", "--if-missing"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path)
    assert "building" in captured.err
    del seen["say"]
    assert seen == {
        "name": "llamacpp",
        "prebuilt": True,
        "accelerator": "cuda",
        "version": "1.2",
        "if_missing": True,
        "cpu": False,
        "python": None,
    }


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "install", "llamacpp", "--cuda", "--metal"]) == 2
    assert "one accelerator at a time; got --cuda, --metal" in capsys.readouterr().err
    assert main(["engines", "check", "nope"]) == 2
    assert "nope" in capsys.readouterr().err


def test_check_fails_where_the_engine_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "check", lambda name, **_: MISSING)
    assert main(["engines", "check", "llamacpp"]) == 1
    monkeypatch.setattr(environments, "check", lambda name, **_: USABLE)
    assert main(["engines", "check", "echo_core"]) == 0


def test_check_takes_an_environment_of_the_users_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("LLMRUN_NATIVE_PYTHON", str(tmp_path / "nowhere"))
    assert main(["engines", "check", "native"]) == 1
    assert f"LLMRUN_NATIVE_PYTHON {tmp_path / 'nowhere'}: there is no such file" in capsys.readouterr().out
    assert main(["engines", "check", "native", "--engine-python", sys.executable]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sys.executable in lines[0]
    assert lines[-1] == "native: 0 failed, 8 passed"


def test_an_environment_that_is_none_or_of_another_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["engines", "check", "llamacpp", "--engine-python", sys.executable]) == 2
    assert "does not know --engine-python; it is for native, vllm, sglang" in capsys.readouterr().err
    assert main(["engines", "check", "vllm", "--engine-python", str(tmp_path / "nowhere")]) == 1
    told = capsys.readouterr().out
    assert "there is no such file" in told and "engines install" not in told
    assert main(["engines", "check", "vllm", "--engine-python", sys.executable]) == 1
    assert f"vllm of {sys.executable} cannot be used: ModuleNotFoundError" in capsys.readouterr().out


def test_remove_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "remove", "llamacpp"]) == 0
    assert "nothing to remove" in capsys.readouterr().err
