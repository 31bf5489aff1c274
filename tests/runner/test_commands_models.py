"""show, ls, pull and rm: data on stdout, messages on stderr."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_cards.card import ModelCard
from model_cards.errors import ModelNotFound
from runner import commands_models
from tests.model_cards.fake_hub import FakeHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    server = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    config = json.dumps({"model_type": "llama", "max_position_embeddings": 64}).encode()
    tokenizer = json.dumps({"added_tokens": [], "model": {"vocab": {"a": 0}}}).encode()
    server.repos["org/m"] = {
        "config.json": config, "tokenizer.json": tokenizer, "model.safetensors": b"\x02" + bytes(7) + b"{}",
    }  # fmt: skip
    yield server
    server.close()


def test_pull_then_ls_then_show_then_rm(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands_models.pull("org/m") == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()).is_dir(), "stdout is the model's path, for scripts"
    assert "fetching model.safetensors" in err and "org/m is here" in err

    assert commands_models.ls(as_json=True) == 0
    listing = json.loads(capsys.readouterr().out)
    assert [model["repo"] for model in listing["models"]] == ["org/m"]
    assert "demo" in [preset["alias"] for preset in listing["presets"]]

    assert commands_models.ls() == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("org/m\t3 files\t") and "1 models" in err

    num_requests = len(hub.log)
    assert commands_models.show("org/m", as_json=True) == 0
    card = ModelCard.from_json(capsys.readouterr().out)
    assert card.name == "org/m" and len(hub.log) == num_requests, "show never asks the network"

    assert commands_models.rm("org/M", yes=True) == 0
    assert "removed org/m" in capsys.readouterr().err
    assert commands_models.rm("org/m", yes=True) == 1


def test_show_for_people(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    commands_models.pull("org/m")
    capsys.readouterr()
    assert commands_models.show("org/m") == 0
    rows = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())
    assert rows["name"] == "org/m" and rows["context"] == "64 tokens" and "fallback" in rows["template"]


def test_show_of_nothing() -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        commands_models.show("./none.gguf")


class TestRemoval:
    @pytest.fixture(autouse=True)
    def pulled(self, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
        commands_models.pull("org/m")
        capsys.readouterr()

    def answer(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        stdin = io.StringIO(text)
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stdin)

    @pytest.mark.parametrize(("text", "code"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
    def test_asks(self, monkeypatch: pytest.MonkeyPatch, text: str, code: int) -> None:
        self.answer(monkeypatch, text)
        assert commands_models.rm("org/m") == code
        self.answer(monkeypatch, "y\n")
        assert commands_models.rm("org/m") == 1 - code, "it is still there only if the answer was no"

    def test_without_a_terminal(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
        assert commands_models.rm("org/m") == 1
        assert "--yes" in capsys.readouterr().err

    def test_not_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert commands_models.rm("org/n", yes=True) == 1
        assert "did you mean org/m?" in capsys.readouterr().err
        assert commands_models.rm(str(tmp_path), yes=True) == 1
        assert "delete your own files yourself" in capsys.readouterr().err


def test_sizes_and_times() -> None:
    sizes = [commands_models._size(number) for number in (0, 999, 1500, 123_456_789, 7e12)]
    assert sizes == ["0 B", "999 B", "1.5 KB", "123 MB", "7.0 TB"]
    assert [commands_models._ago(s) for s in (5, 90, 7300, 200_000)] == ["just now", "1 minute ago", "2 hours ago",
                                                                       "2 days ago"]  # fmt: skip
    assert [commands_models._count(n) for n in (5, 134e6, 7.2e9)] == ["5", "134 million", "7.2 billion"]


def test_the_module_loads_nothing_heavy() -> None:
    import subprocess

    code = "import sys, runner.commands_models; print({'rich', 'huggingface_hub', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
