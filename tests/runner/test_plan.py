"""Choices, their reasons, and the errors for what cannot be."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from model_cards.card import ModelCard
from model_cards.errors import ModelNotFound
from runner.config_file import Settings, merge
from runner.engines import ENGINES, EngineEntry
from runner.errors import UsageError
from runner.frontends import FRONTENDS, NOT_BUILT
from runner.options import RunOptions
from runner.plan import Plan, as_data, as_text, make_plan
from runner.selection import choose_frontend, name_engine
from runner.words import parse_words

KINDS = {".gguf": "gguf", "hf": "hf", "trt": "trtllm"}


def resolve(source: str, options: RunOptions) -> ModelCard:
    if source == "no.gguf":
        raise ModelNotFound("no file no.gguf")
    kind: Any = next((kind for mark, kind in KINDS.items() if mark in source), "gguf")
    return ModelCard(name=options.model_name or source, source=source, kind=kind, path=f"/models/{source}")


def plan(*words: str, tail: tuple[str, ...] = (), terminal: bool = True, **given: Any) -> Plan:
    settings: Settings = merge(given, {})
    model_path = settings.values.get("model_path")
    parsed = parse_words(words, aliases=["demo"], model_path=str(model_path) if model_path else None)
    return make_plan(settings, parsed, tail, terminal=terminal, resolve=resolve)


def test_defaults_are_the_demo_model_on_llamacpp_in_the_terminal() -> None:
    made = plan()
    assert (made.card.source, made.engine.name, made.frontend.name) == ("demo", "llamacpp", "text")
    assert made.why["engine"] == "the model is a GGUF file"
    assert "demo" in made.why["model"]


def test_frontend_by_terminal_prompt_and_node() -> None:
    assert plan(terminal=False).frontend.name == "stdin"
    assert plan("hi").frontend.name == "stdin"
    assert plan("hi").frontend.prompt == "hi"
    assert plan("in=text", "hi").frontend.name == "text"
    follower = {"num_nodes": "2", "node_rank": "1", "leader_addr": "a:1"}
    assert plan("m.gguf", **follower).frontend.name == "none"
    assert plan("m.gguf", "in=http", **follower).frontend.name == "http"


def test_in_and_out_may_be_flags_or_settings() -> None:
    made = plan("m.gguf", **{"in": "http", "out": "echo_core"})
    assert (made.frontend.name, made.engine.name) == ("http", "echo_core")
    assert plan("m.gguf", "in=text", **{"in": "http"}).frontend.name == "text"


def test_a_text_engine_needs_no_model_and_is_named_after_itself_or_its_file() -> None:
    assert plan("out=echo").card.name == "echo_full"
    assert plan("out=pystr:dir/my_engine.py", tail=("--x", "1")).card.name == "my_engine"
    made = plan("out=pystr:e.py", tail=("--x", "1"), model_name="m")
    assert (made.card.name, made.engine.argument, made.engine.tail) == ("m", "e.py", ("--x", "1"))


def test_engine_options_come_from_flags_and_the_extra_file(tmp_path: Path) -> None:
    extra = tmp_path / "e.json"
    extra.write_text('{"flash_attn": true}')
    made = plan(
        "m.gguf", context_length="512", gpu_layers="-1", max_running="4", no_restart="1", extra_engine_args=str(extra)
    )
    options = made.engine.options
    assert (options.context_length, options.gpu_layers, options.max_running) == (512, -1, 4)
    assert (options.max_restarts, options.extra) == (0, {"flash_attn": True})


@pytest.mark.parametrize(
    ("name", "content"), [("e.json", "{"), ("e.json", "[1]"), ("e.toml", "a ="), ("no.json", None)]
)
def test_a_bad_extra_file_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=f"--extra-engine-args.*{name}"):
        plan("m.gguf", extra_engine_args=str(tmp_path / name))


@pytest.mark.parametrize(
    ("words", "given", "message"),
    [
        (["in=grpc"], {}, "in=grpc is not built yet; instead: in=http"),
        (["in=htp"], {}, "unknown in=htp; did you mean http.*allowed: text"),
        (["in=batch"], {}, "in=batch needs a file: in=batch:FILE.jsonl"),
        (["in=http:80"], {}, "takes nothing after a colon"),
        (["out=triton://h:1/m"], {}, "out=triton .* is not built yet; instead: out=llamacpp"),
        (["out=llama"], {}, "unknown out=llama; did you mean llama"),
        (["out=pystr"], {}, r"out=pystr needs an argument: out=pystr:FILE.py"),
        (["out=echo:x"], {}, "takes nothing after a colon"),
        (["in=dyn://a.b.c", "out=dyn://a.b.c"], {}, "Cannot use endpoint for both in and out"),
        (["in=http", "m.gguf", "hi"], {}, "in=http takes no PROMPT"),
        (["m.gguf"], {"node_rank": "1"}, "--node-rank: got 1; allowed: 0 to 0"),
        (["m.gguf"], {"num_nodes": "2"}, "needs --leader-addr"),
        (["m.gguf"], {"tls_cert_path": "c.pem"}, "go together"),
    ],
)
def test_what_cannot_be_says_why_and_what_instead(words: list[str], given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(*words, **given)


def test_a_hugging_face_folder_runs_on_native() -> None:
    chosen = plan(model_path="x_hf")
    assert chosen.engine.name == "native"
    assert chosen.why["engine"] == "the model is a Hugging Face folder"
    with pytest.raises(UsageError, match="out=llamacpp runs a GGUF file; x_hf is a Hugging Face folder"):
        plan("out=llamacpp", model_path="x_hf")


def test_a_flag_that_the_engine_does_not_know_is_refused() -> None:
    assert plan(model_path="x_hf", quantize="int8").engine.options.quantize == "int8"
    with pytest.raises(UsageError, match=r"out=llamacpp does not know --quantize; .*\(it is for out=native, out=v"):
        plan("m.gguf", quantize="int8")


def test_the_tail_goes_to_python_engines_only() -> None:
    with pytest.raises(UsageError, match="out=pystr: or out=pytok: only"):
        plan("m.gguf", tail=("x",))


def test_a_wrong_engine_is_told_before_a_model_is_looked_for() -> None:
    with pytest.raises(UsageError, match="unknown out="):
        plan("out=nope", "no.gguf")


def test_every_word_of_the_design_is_known() -> None:
    for name in ("text", "stdin", "http", "batch", "none", "dyn"):
        assert name in {**FRONTENDS, **NOT_BUILT}
    for name in [
        "native",
        "llamacpp",
        "vllm",
        "sglang",
        "trtllm",
        "mistralrs",
        "triton",
        "dyn",
        "echo_core",
        "echo_full",
        "pystr",
        "pytok",
        "mocker",
    ]:
        assert name in ENGINES


def test_the_plan_prints_and_masks_keys() -> None:
    made = plan("in=http", "m.gguf", api_key=["secret"], context_length="64")
    text, data = as_text(made), as_data(made)
    assert "secret" not in text + json.dumps(data)
    assert "context_length = 64" in text
    assert "the model is a GGUF file" in text
    assert data["engine"]["options"]["context_length"] == 64
    assert data["settings"]["api_key"] == {"value": "***", "from": "--api-key"}


class _Point:
    """An entry point of another package."""

    def __init__(self, name: str, loaded: Any) -> None:
        self.name, self.value, self.dist, self._loaded = name, "other_package:make_engine", None, loaded
        self.num_loads = 0

    def load(self) -> Any:
        self.num_loads += 1
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


def test_engines_of_other_packages_are_loaded_only_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = _Point("mine", lambda spec: None), _Point("theirs", ImportError("no"))
    entry = _Point("row", EngineEntry(name="row", summary="s", factory="p:q", models=("hf",)))

    def points(*, group: str, name: str | None = None) -> list[_Point]:
        assert group == "llmrun.engines"
        return [point for point in (mine, theirs, entry) if name in (None, point.name)]

    monkeypatch.setattr(metadata, "entry_points", points)
    name_engine("llamacpp")
    assert name_engine("mine").entry.factory == "other_package:make_engine"
    assert name_engine("row").entry.models == ("hf",)
    assert (mine.num_loads, theirs.num_loads) == (1, 0)
    with pytest.raises(UsageError, match=r"out=theirs: the package that offers it cannot be loaded"):
        name_engine("theirs")
    with pytest.raises(UsageError, match=r"unknown out=nope.*mine"):
        name_engine("nope")


def test_a_frontend_reason() -> None:
    assert choose_frontend(None, terminal=False).why == "stdin is not a terminal"
