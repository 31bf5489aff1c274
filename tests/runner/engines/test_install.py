"""`llmrun engines install` with real environments, a real installer and a toy library: twice, offline, with a full
disk, interrupted, two at once. Whatever happens, an environment is whole or not there, and nothing else is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from runner import paths
from runner.engines import environments
from runner.engines.new_environment import find_uv
from tests.runner.engines.toy_package import ENVIRONMENT, HangingIndex, write_wheel

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "tests.runner.engines.toy_package", "engines"]
INSTALLERS = ["pip", pytest.param("uv", marks=pytest.mark.skipif(find_uv() is None, reason="no uv here"))]
BOUND_S = 100


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy index as the only one; returns its folder."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "1.0", "")
    write_wheel(wheels, "2.0", "")
    write_wheel(wheels, "3.0", "raise ImportError('operator toy::nms does not exist')")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    use("pip", monkeypatch)
    return wheels


def use(installer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH with or without uv."""
    without = [part for part in os.environ["PATH"].split(os.pathsep) if not Path(part, "uv").exists()]
    uv = find_uv()
    extra = [str(Path(uv).parent)] if installer == "uv" and uv else []
    monkeypatch.setenv("PATH", os.pathsep.join([*extra, *without]))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=BOUND_S, check=False)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left() -> list[str]:
    """What lies in the engines' folder."""
    return sorted(path.name for path in paths.engines_dir().iterdir())


def is_whole(version: str = "1.0") -> bool:
    """The environment is found, and both its Python and its scripts work in their final place."""
    assert ENVIRONMENT.find() == str(ENVIRONMENT.installed_dir / "bin" / "python")
    assert ENVIRONMENT.version_in(ENVIRONMENT.installed_dir) == version
    said = subprocess.run([ENVIRONMENT.installed_dir / "bin" / "toy"], capture_output=True, text=True, check=True)
    return said.stdout == f"toy {version}\n" and left() == [".vllm.lock", "vllm"]


@pytest.mark.parametrize("installer", INSTALLERS)
def test_install_twice_and_remove(installer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(installer, monkeypatch)
    first = run("install", "vllm")
    assert (first.returncode, first.stdout.strip()) == (0, str(ENVIRONMENT.installed_dir)), first.stderr
    assert "toylib 1.0 imports" in first.stderr
    assert is_whole()
    again = run("install", "vllm", "--version", "2.0")
    assert again.returncode == 0, again.stderr
    assert is_whole("2.0")
    assert not list(ENVIRONMENT.installed_dir.glob("tmp"))
    for script in (ENVIRONMENT.installed_dir / "bin").iterdir():
        assert ".vllm-new-" not in script.read_text(errors="replace"), script
    assert run("remove", "vllm").returncode == 0
    assert left() == [".vllm.lock"]


@pytest.mark.slow
@pytest.mark.parametrize("installer", INSTALLERS)
def test_offline_says_so_and_leaves_the_old_one(installer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(installer, monkeypatch)
    assert run("install", "vllm").returncode == 0
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    failed = run("install", "vllm", "--version", "2.0")
    assert failed.returncode == 1
    assert "toylib==2.0 could not be installed" in failed.stderr
    assert "package index cannot be reached" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert is_whole()


@pytest.mark.slow
def test_a_library_that_does_not_import_is_no_installation() -> None:
    failed = run("install", "vllm", "--version", "3.0")
    assert failed.returncode == 1
    assert "operator toy::nms does not exist" in failed.stderr
    assert left() == [".vllm.lock"]
    assert ENVIRONMENT.find() is None


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """LLMRUN_HOME on a file system of 60 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can make a small disk")
    if subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=60m", "toy", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setenv("LLMRUN_HOME", str(disk))
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("installer", INSTALLERS)
def test_a_full_disk_says_so_and_leaves_nothing(
    installer: str, settings: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(installer, monkeypatch)
    monkeypatch.setenv("UV_LINK_MODE", "copy")
    write_wheel(settings, "4.0", "", num_bulk_bytes=80_000_000)
    failed = run("install", "vllm", "--version", "4.0")
    assert failed.returncode == 1
    assert "the disk is full" in failed.stderr
    assert left() == [".vllm.lock"]
    assert shutil.disk_usage(small_disk).used < 1_000_000
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    done = run("install", "vllm", "--version", "4.0")
    assert done.returncode == 0, done.stderr
    assert is_whole("4.0")


@pytest.fixture
def hanging(settings: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingIndex]:
    """Half-way for ever: the download has begun."""
    index = HangingIndex(settings / "toylib-1.0-py3-none-any.whl")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    yield index
    index.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("installer", INSTALLERS)
def test_interrupted_half_way_nothing_runs_on_and_the_next_one_is_clean(
    installer: str, number: signal.Signals, settings: Path, hanging: HangingIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(installer, monkeypatch)
    process = start("install", "vllm")
    assert hanging.is_asked.wait(BOUND_S), process.communicate()
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(number)
    _, said = process.communicate(timeout=BOUND_S)
    assert process.returncode == (130 if number is signal.SIGINT else -number)
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=10)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    assert ENVIRONMENT.find() is None
    if number is signal.SIGINT:
        assert left() == [".vllm.lock"]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(settings))
    done = run("install", "vllm")
    assert done.returncode == 0, done.stderr
    assert is_whole()


@pytest.mark.slow
def test_two_at_once_take_turns() -> None:
    both = [start("install", "vllm", "--if-missing") for _ in range(2)]
    said = [process.communicate(timeout=BOUND_S)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("another installation of vllm is running; waiting for it" in text for text in said) == 1
    assert sum("installed: " in text for text in said) == 1
    assert is_whole()


@pytest.mark.slow
def test_a_running_engine_keeps_its_environment_while_another_is_installed() -> None:
    assert run("install", "vllm").returncode == 0
    code = "import time, toylib; print('up', flush=True); time.sleep(60)"
    python = str(ENVIRONMENT.installed_dir / "bin" / "python")
    with subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None and engine.stdout.readline() == "up\n"
        assert run("install", "vllm", "--version", "2.0").returncode == 0
        assert engine.poll() is None
        engine.kill()
    assert is_whole("2.0")


def test_flags_that_mean_nothing_to_an_engine_are_refused() -> None:
    failed = run("install", "vllm", "--prebuilt", "--cuda")
    assert failed.returncode == 2
    assert "does not know --prebuilt, --cuda; it takes --python, --version" in failed.stderr
    failed = run("install", "llamacpp", "--cpu", "--python", "3.12")
    assert failed.returncode == 2
    assert "does not know --cpu, --python; it takes --cuda, --metal, --prebuilt, --version, --vulkan" in failed.stderr
    failed = run("install", "vllm", "--python", "/nowhere/python")
    assert failed.returncode == 1
    assert "/nowhere/python cannot be run: No such file or directory" in failed.stderr
    assert "check --python" in failed.stderr


def test_every_recipe_says_what_it_takes() -> None:
    known = {"prebuilt", "cpu", "cuda", "metal", "vulkan", "version", "python"}
    for name in environments.RECIPES:
        assert environments._recipe(name).takes <= known, name
