"""The command line end to end, in a process of its own where it matters, with engines that need no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.cli import main
from runner.flags import FLAGS
from runner.help import COMMANDS, ENGINE_HELP, FRONTEND_HELP, command_names

HEAVY = [
    "aiohttp",
    "asyncio",
    "huggingface_hub",
    "jinja2",
    "llama_cpp",
    "msgspec",
    "numpy",
    "prompt_toolkit",
    "rich",
    "sglang",
    "tensorrt_llm",
    "tokenizers",
    "torch",
    "transformers",
    "uvloop",
    "vllm",
    "xllamacpp",
]


def llmrun(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runner", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
        check=False,
    )


def test_help_imports_no_engine_and_no_heavy_library() -> None:
    program = (
        "import sys, io, contextlib\nfrom runner.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out: code = main(['--help'])\n"
        f"print(code, 'Examples' in out.getvalue(), [name for name in {HEAVY!r} if name in sys.modules], "
        "[name for name in sys.modules if name.startswith('runner.engines')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "0 True [] []", done.stderr


def test_help_names_every_flag_command_frontend_and_engine(capsys: pytest.CaptureFixture[str]) -> None:
    from runner.engines import ENGINES
    from runner.frontends import FRONTENDS

    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for flag in FLAGS for name in flag.names)
    assert text.index("Examples") < text.index("--model-path")
    for name in ENGINES:
        assert any(name in names for names, _ in ENGINE_HELP), name
    assert {name.partition(":")[0] for name, _ in FRONTEND_HELP} == set(FRONTENDS)
    words = {word for names, _ in COMMANDS for word in names.replace("MODEL", "").replace(",", "").split()}
    assert words == set(command_names())


@pytest.mark.parametrize("arguments", [["-h"], ["in=http", "--help"], ["--model-path", "x", "-h"]])
def test_help_anywhere(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "Examples" in capsys.readouterr().out


def test_an_answer_on_stdout_and_all_else_on_stderr() -> None:
    done = llmrun("out=echo_full", "hello there", LLMRUN_TOKEN_ECHO_DELAY_MS="0")
    assert (done.returncode, done.stdout) == (0, "hello there\n"), done.stderr
    piped = llmrun("-v", "out=echo_full", stdin="from a pipe\n", LLMRUN_TOKEN_ECHO_DELAY_MS="0")
    assert (piped.returncode, piped.stdout) == (0, "from a pipe\n")
    assert "first after" in piped.stderr


def test_text_over_a_pipe_is_a_conversation() -> None:
    done = llmrun("in=text", "out=echo_full", stdin='one\n"""two\nlines"""\n//three\n', LLMRUN_TOKEN_ECHO_DELAY_MS="0")
    assert (done.returncode, done.stdout) == (0, "one\ntwo\nlines\n/three\n"), done.stderr


def test_in_and_out_may_stand_after_flags() -> None:
    done = llmrun("--seed", "1", "in=http", "--dry-run", "-ngl", "99", "out=echo_full", "--json", "-c=64", "-t", "2")
    data = json.loads(done.stdout)
    assert data["frontend"]["in"] == "http"
    assert (
        data["engine"]["options"] | {"seed": 1, "gpu_layers": 99, "context_length": 64, "threads": 2}
        == (data["engine"]["options"])
    )


@pytest.mark.parametrize(
    "spelled", [["-ngl", "7"], ["-ngl=7"], ["--gpu-layers=7"], ["--n-gpu-layers", "7"]], ids=lambda words: words[0]
)
def test_ngl(spelled: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*spelled, "out=echo_full", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["options"]["gpu_layers"] == 7


def test_a_bool_of_the_environment_can_be_taken_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMRUN_LENIENT", "1")
    monkeypatch.setenv("LLMRUN_NO_RESTART", "1")
    assert main(["out=echo_full", "--dry-run", "--json", "--no-lenient", "--restart"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["settings"]["lenient"] == {"value": False, "from": "--lenient"}
    assert "max_restarts" not in data["engine"]["options"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--http-prt", "1"], "no such flag: --http-prt; did you mean --http-port?"),
        (["version", "--json"], "no such flag: --json (llmrun"),
        (["show", "--jsn", "demo"], "no such flag: --jsn; did you mean --json?"),
        (["--http-port"], "requires an argument"),
        (["--http-port", "x", "out=echo_full"], "--http-port: got 'x'; allowed: a whole number from 1 to 65,535"),
        (["-vvv", "out=echo_full"], "-v, -vv"),
        (["in=http", "in=text"], "in= is given twice"),
        (["in=http", "--in", "text"], "in= is given twice"),
        (["out=echo", "--out", "mocker"], "out= is given twice"),
        (["out=triton://host:1/m"], "not built yet; instead"),
        (["doctr"], "did you mean `llmrun doctor`"),
        (["-v", "show", "x"], "put the command first: llmrun show"),
        (["--json", "out=echo_full"], "--json goes with --dry-run"),
        (["show"], "MODEL"),
    ],
)
def test_usage_errors_exit_2_with_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_near_miss_of_a_file_is_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["modle.gguf"]) == 1
    assert "modle.gguf" in capsys.readouterr().err


def test_traceback_with_vv_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-vv", "out=nope"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from runner import __version__

    assert main(["--version"]) == 0
    assert main(["version"]) == 0
    assert capsys.readouterr().out.count(f"llmrun {__version__}") == 2


def _complete(words: str, position: int) -> list[str]:
    done = llmrun(_LLMRUN_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(position))
    return done.stdout.split()


def test_completion_of_words_flags_and_commands() -> None:
    assert "in=http" in _complete("llmrun in", 1)
    assert "out=llamacpp" in _complete("llmrun in=http out", 2)
    assert _complete("llmrun in=http --http-h", 2) == ["--http-host"]
    assert "--http-port" in _complete("llmrun --http", 1)
    assert "doctor" in _complete("llmrun do", 1)
    assert "run" not in _complete("llmrun r", 1)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion_prints_a_script(shell: str) -> None:
    done = llmrun("--show-completion", shell)
    assert f"_LLMRUN_COMPLETE=complete_{shell}" in done.stdout, done.stderr


def test_the_demo_model_can_be_shown_and_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "demo"
    assert main(["--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["engine"]["out"], plan["card"]["name"]) == ("llamacpp", "demo")
    assert plan["why"]["model"] == "no model is given: the bundled demo model"


def test_what_was_chosen_is_said_in_one_line() -> None:
    done = llmrun("out=echo_core", "hello", "--max-tokens", "2", LLMRUN_TOKEN_ECHO_DELAY_MS="0")
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "llmrun: demo (no model is given: the bundled demo model), prompt 'hello'"


def test_bench_gets_the_words_after_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--no-such-flag"]) == 2
    assert "bench: no such flag: --no-such-flag" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [("in=text",), ("in=stdin",)])
def test_a_full_disk_is_said_without_a_traceback(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "runner", *words, "out=echo_full"],
            input="hello\n", stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr


@pytest.mark.parametrize("words", [("in=text",), ("in=stdin",)])
def test_a_reader_that_goes_away_ends_it_quietly(words: tuple[str, ...]) -> None:
    command = f"yes hello | head -500 | {sys.executable} -m runner {' '.join(words)} out=echo_full | head -c 1"
    environment = {**os.environ, "LLMRUN_TOKEN_ECHO_DELAY_MS": "0"}
    done = subprocess.run(["bash", "-c", f"{command}; echo ${{PIPESTATUS[2]}}"], capture_output=True, text=True,
                          timeout=60, env=environment, check=False)  # fmt: skip
    assert done.stdout == "h141\n", done.stderr
    assert "Traceback" not in done.stderr and "error" not in done.stderr
