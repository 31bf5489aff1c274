"""out=A,B: the order, the reasons, what is tried at launch, and that what failed is closed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner import launch, registry
from runner.chain import brief, name_chain, split_target
from runner.cli import main
from runner.engines.base import EngineSpec
from runner.engines.process import ProcessEngine
from runner.errors import EngineStartFailed, UsageError
from runner.plan import Plan
from tests.runner.test_plan import plan

ROOT = Path(__file__).parents[2]


def test_commas_split_engines_and_not_arguments() -> None:
    assert split_target("vllm,llamacpp") == ["vllm", "llamacpp"]
    assert split_target("pystr:a,b.py,llamacpp") == ["pystr:a,b.py", "llamacpp"]
    assert split_target("echo") == ["echo"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("vllm,lamacpp", "unknown out=lamacpp; did you mean llamacpp"),
        ("vllm,", "unknown out="),
        ("vllm,vllm", "names vllm twice"),
        ("triton://h/m", "not built yet"),
    ],
)
def test_slips_are_errors_and_no_reason_to_move_on(target: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        name_chain(target)


def test_what_cannot_take_the_model_or_a_flag_is_passed_over_with_the_reason() -> None:
    made = plan("out=sglang,llamacpp,native", "m.gguf")
    assert made.engine.name == "llamacpp"
    assert [fallback.engine.name for fallback in made.fallbacks] == ["native"]
    assert [row.name for row in made.passed] == ["sglang"]
    assert "a Hugging Face folder" in made.passed[0].why
    made = plan("out=native,llamacpp", "m.gguf", gpu_memory_utilization="0.5")
    assert (made.engine.name, made.fallbacks) == ("native", ())
    assert "--gpu-memory-utilization" in made.passed[0].why


def test_nothing_left_is_one_error_with_every_reason() -> None:
    with pytest.raises(UsageError) as caught:
        plan("out=sglang,llamacpp", "m.gguf", dtype="float32")
    lines = str(caught.value).splitlines()
    assert lines[0] == "none of the engines can serve this:"
    assert sorted(line.split()[0] for line in lines[1:]) == ["out=llamacpp:", "out=sglang:"]


def test_one_engine_keeps_its_own_error() -> None:
    with pytest.raises(UsageError, match=r"^out=llamacpp runs a GGUF file; x_hf is"):
        plan("out=llamacpp", model_path="x_hf")


def test_the_reason_is_one_line_with_the_next_step() -> None:
    error = EngineStartFailed("the engine x did not start: no GPU\nits last words:\nlog", hint="buy one")
    assert brief(error, "x") == "did not start: no GPU (buy one)"
    assert brief(UsageError("out=x runs no GGUF"), "x") == "runs no GGUF"


def chain_of(monkeypatch: pytest.MonkeyPatch, **children: str) -> tuple[Plan, list[ProcessEngine]]:
    """A plan whose engines are real child processes of fault_engines."""
    made: list[ProcessEngine] = []

    def load(name: str) -> Any:
        kind = children[name.removeprefix("test:")]

        def make(spec: EngineSpec) -> ProcessEngine:
            made.append(
                ProcessEngine(spec, f"tests.runner.engines.fault_engines:{kind}", env={"PYTHONPATH": str(ROOT)})
            )
            return made[-1]

        return make

    monkeypatch.setattr(registry, "load", load)
    base = plan("out=echo_full")
    plans = [
        Plan(
            engine=EngineSpec(name=name, card=base.card),
            factory=f"test:{name}",
            level="text",
            frontend=base.frontend,
            options=base.options,
            why=base.why,
            sources={},
        )
        for name in children
    ]
    return Plan(
        **{**{field: getattr(plans[0], field) for field in Plan.__struct_fields__}, "fallbacks": tuple(plans[1:])}
    ), made


async def test_a_failed_start_is_closed_told_and_the_next_one_serves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, made = chain_of(monkeypatch, first="OutOfMemory", second="Counter")
    service, info = await launch.start_service(chain)
    try:
        assert service is made[1] and info.name == "counter"
        assert made[0].pid is None
        assert [child.pid for child in psutil.Process().children()].count(made[1].pid or -1) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llmrun: ")]
        assert len(said) == 1
        assert said[0].startswith("llmrun: not out=first: did not start: ") and said[0].endswith("trying out=second")
    finally:
        await service.close()


async def test_all_fail_is_one_error_and_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, made = chain_of(monkeypatch, first="OutOfMemory", second="Segfaults")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(EngineStartFailed) as caught:
        await launch.start_service(chain)
    lines = str(caught.value).splitlines()
    assert lines[0] == "none of the engines can serve this:"
    assert lines[1].startswith("  out=first: did not start: ")
    assert "SIGSEGV" in lines[2]
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert [engine.pid for engine in made] == [None, None]


def test_dry_run_shows_the_chain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMRUN_VLLM_PYTHON", raising=False)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert main(["out=vllm,native,echo_core", "demo-hf", "--dry-run"]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    told = {row[0]: row[1] for row in rows if row[0] in ("engine", "passed", "then")}
    assert told["engine"].startswith("out=native")
    assert told["passed"].startswith("out=vllm  (needs vLLM, which is not installed; run: llmrun engines install vllm")
    assert told["then"].startswith("out=echo_core")
    assert main(["out=vllm,native,echo_core", "demo-hf", "--dry-run", "--json"]) == 0
    engine = json.loads(capsys.readouterr().out)["engine"]
    assert (engine["out"], engine["fallbacks"][0]["out"]) == ("native", "echo_core")
    assert engine["passed_over"][0]["name"] == "vllm"
    assert main(["out=vllm,sglang", "demo-hf", "--dry-run"]) == 1
    assert "none of the engines can serve this" in capsys.readouterr().err
