"""stdin, stdout, prompts and templates that cannot be used: an exit code and one line, never a crash."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.bad_input.conftest import CONTEXT
from tests.bad_input.program import FAILURE, LLMRUN, USAGE, Program, check_no_orphan, environment

pytestmark = pytest.mark.timeout(300)
SIGPIPE_EXIT = 141
ENGINES = ["echo_core", pytest.param("llamacpp", marks=pytest.mark.llamacpp)]

TEMPLATES = [
    ("{{ raise_exception('no greetings here') }}", "the chat template refused these messages: no greetings here"),
    ("{{ 1 / 0 }}", "the chat template failed: ZeroDivisionError"),
    ("{% if %}", "the chat template is not valid Jinja: line 1"),
    ("{{ messages.__class__.__mro__ }}", "the chat template"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "the chat template"),
    ("nowhere.jinja", "cannot read the chat template nowhere.jinja"),
]


@pytest.mark.parametrize(("template", "telling"), TEMPLATES)
def test_a_chat_template_that_raises(llmrun: Program, toy: Path, template: str, telling: str) -> None:
    llmrun("out=echo_core", toy, "hi", "--chat-template", template).failed(FAILURE, telling)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_over_the_context(llmrun: Program, toy: Path, engine: str, request: pytest.FixtureRequest) -> None:
    if engine == "llamacpp":
        request.getfixturevalue("needs_llamacpp")
    done = llmrun(f"out={engine}", toy, "so it goes " * 500)
    done.failed(FAILURE, "prompt has ", f"the context is {CONTEXT}", "shorten it")


def test_max_tokens_over_the_context(llmrun: Program, toy: Path) -> None:
    done = llmrun("out=echo_core", toy, "hi", "--max-tokens", "5000")
    done.failed(FAILURE, "max_tokens is 5,000", f"the context is {CONTEXT}", "ask for at most")


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e999", "warm", ""])
def test_numbers_that_are_none(llmrun: Program, toy: Path, value: str) -> None:
    done = llmrun("out=echo_core", toy, "hi", f"--temperature={value}")
    done.failed(USAGE, "--temperature", repr(value), "a number from 0 to 100")


def test_a_prompt_that_is_not_utf8(llmrun: Program, toy: Path) -> None:
    llmrun("out=echo_core", toy, b"h\xffi").failed(USAGE, "PROMPT is not UTF-8: byte 0xff at character 1", "iconv")


@pytest.mark.parametrize(
    ("piped", "telling"), [(b"h\xffi", "byte 0xff at offset 1"), (b"", "nothing to answer"), (b"\n\n", "try: llmrun")]
)
def test_a_stdin_that_is_no_prompt(llmrun: Program, toy: Path, tmp_path: Path, piped: bytes, telling: str) -> None:
    (tmp_path / "in").write_bytes(piped)
    with (tmp_path / "in").open("rb") as stdin:
        llmrun("out=echo_core", toy, stdin=stdin).failed(USAGE, telling)


COMMANDS = {
    "echo": ("out=echo_core", "TOY", "hi"),
    "show": ("show", "TOY"),
    "help": ("--help",),
    "plan": ("--dry-run", "TOY", "hi"),
    "version": ("version",),
}


@pytest.mark.parametrize("name", [*COMMANDS, pytest.param("llamacpp", marks=pytest.mark.llamacpp)])
def test_sigpipe(llmrun: Program, toy: Path, name: str, request: pytest.FixtureRequest) -> None:
    """A reader that goes away (head, less) is no error: silence, and the code of a program that SIGPIPE ended."""
    if name == "llamacpp":
        request.getfixturevalue("needs_llamacpp")
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.closing(os.fdopen(writer, "wb")) as stdout:
        done = llmrun(*(toy if word == "TOY" else word for word in COMMANDS.get(name, ("TOY", "hi"))), stdout=stdout)
    assert done.code == SIGPIPE_EXIT, done
    assert "error" not in done.err and "Exception" not in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("name", COMMANDS)
def test_stdout_on_a_full_disk(llmrun: Program, toy: Path, name: str) -> None:
    with Path("/dev/full").open("wb") as stdout:
        done = llmrun(*(toy if word == "TOY" else word for word in COMMANDS[name]), stdout=stdout)
    done.failed(FAILURE, "No space left on device")
    assert "Exception" not in done.err


@pytest.mark.parametrize("name", ["echo", "version", "plan"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files(llmrun: Program, toy: Path, tmp_path: Path, name: str, closed: str) -> None:
    """Where a service manager starts a program so, files that it opens must not become its stdin, stdout or stderr."""
    words = [str(toy) if word == "TOY" else word for word in COMMANDS[name]]
    env = environment(tmp_path)
    done = subprocess.run(["bash", "-c", f'"$@" {closed}', "bash", *LLMRUN, *words], env=env, cwd=tmp_path,
                          capture_output=True, timeout=90, check=False)  # fmt: skip
    check_no_orphan(env)
    assert done.returncode == (FAILURE if ">&-" in closed.replace("2>&-", "") else 0), done
    assert b"Traceback" not in done.stderr and b"bug" not in done.stderr and b"Exception" not in done.stderr
    if closed == ">&-":
        assert b"error: " in done.stderr and b"stdout" in done.stderr
    if done.returncode == 0:
        assert done.stdout
