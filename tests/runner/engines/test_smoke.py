"""The smoke test of a library: fake libraries that crash as the real ones do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner import paths
from runner.engines import smoke
from runner.engines.llamacpp import probe
from runner.errors import EngineStartFailed

SEGFAULT = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "libfake.so"
    path.write_bytes(b"library")
    return path


def python(code: str, log: Path) -> list[str]:
    return [sys.executable, "-c", f"open({str(log)!r}, 'a').write('x'); {code}"]


def test_a_crash_is_worked_around_and_remembered(library: Path, tmp_path: Path) -> None:
    log, said = tmp_path / "log", []
    variants = {"fast": python(SEGFAULT, log), "slow": python("pass", log)}
    for _ in range(2):
        assert smoke.first_working(library, variants, hint="h", say=said.append) == "slow"
    assert log.read_text() == "xx"  # each variant once; the second time it was remembered
    assert said == ["libfake.so crashes with fast (SIGSEGV); using slow from now on"]


def test_a_library_that_works_is_silent(library: Path, tmp_path: Path) -> None:
    said: list[str] = []
    variants = {"fast": python("pass", tmp_path / "log"), "slow": python(SEGFAULT, tmp_path / "log")}
    assert smoke.first_working(library, variants, hint="h", say=said.append) == "fast"
    assert said == []


def test_a_changed_library_is_tried_again(library: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    smoke.first_working(library, {"fast": python("pass", log)}, hint="h")
    library.write_bytes(b"another build")
    os.utime(library, (1, 1))
    smoke.first_working(library, {"fast": python("pass", log)}, hint="h")
    assert log.read_text() == "xx"


def test_none_works(library: Path, tmp_path: Path) -> None:
    variants = {"fast": python(SEGFAULT, tmp_path / "log"), "slow": python("raise SystemExit('bad')", tmp_path / "log")}
    for _ in range(2):  # not remembered
        with pytest.raises(EngineStartFailed, match=r"fast \(SIGSEGV\); slow \(exit code 1: bad\)") as failure:
            smoke.first_working(library, variants, hint="install it")
        assert failure.value.hint == "install it"


def test_a_broken_or_unwritable_memory_costs_no_start(library: Path, tmp_path: Path) -> None:
    variants = {"fast": python("pass", tmp_path / "log")}
    paths.state_dir().mkdir(parents=True)
    (paths.state_dir() / "smoke.json").write_text("{ not json")
    assert smoke.first_working(library, variants, hint="h") == "fast"
    (paths.state_dir() / "smoke.json").unlink()
    paths.state_dir().rmdir()
    paths.state_dir().write_text("a file")
    assert smoke.first_working(library, variants, hint="h") == "fast"


def test_the_crash_of_repacked_weights_turns_them_off(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The AMX fault: `python -m ...probe LIBRARY 1` dies, with 0 it works."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\n[ "$4" = 0 ] && exit 0\nkill -SEGV $$\n')
    fake.chmod(0o755)
    monkeypatch.setattr(probe.sys, "executable", str(fake))
    assert probe.extra_bufts_work(library) is False
    assert capsys.readouterr().err.count("\n") == 1
    assert probe.extra_bufts_work(library) is False
    assert capsys.readouterr().err == ""


@pytest.mark.llamacpp
@pytest.mark.parametrize("repack", ["0", "1"])
def test_the_real_library_computes(llamacpp_library: Path, repack: str) -> None:
    command = [sys.executable, "-m", "runner.engines.llamacpp.probe", str(llamacpp_library), repack]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.llamacpp
def test_something_else_than_llama_cpp_is_refused(tmp_path: Path) -> None:
    not_a_library = tmp_path / "libllama.so"
    not_a_library.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(EngineStartFailed, match="cannot load"):
        probe.extra_bufts_work(not_a_library)
