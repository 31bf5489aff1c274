"""Installing engines: staging, rename, lock, leftovers, and pip's failures in plain words. No network, no compiler."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runner import paths
from runner.engines import environments, pip
from runner.engines.environments import Wish, check, install, list_engines, remove
from runner.engines.llamacpp import recipe as llamacpp_recipe
from runner.engines.pip import InstallFailed, install_into
from runner.errors import EngineStartFailed, UsageError


class FakeRecipe:
    """Writes one file; what it is told to."""

    takes: frozenset[str] = frozenset()
    wish: Wish | None = None
    fails_with: BaseException | None = None
    content = "one"
    seconds = 0.0

    def build(self, folder: Path, wish: Wish, say: environments.Say) -> None:
        self.wish = wish
        (folder / "half").write_text("half made")
        time.sleep(self.seconds)
        if self.fails_with is not None:
            raise self.fails_with
        (folder / "library").write_text(self.content)
        (folder / "half").unlink()

    def find(self, chosen: str | None = None) -> Path | None:
        path = paths.engines_dir() / "llamacpp" / "library"
        return path if path.is_file() else None

    def describe(self, found: Path) -> str:
        return f"fake at {found}"

    def version(self, found: Path) -> str:
        return "1"

    def check(self, found: Path) -> str:
        raise EngineStartFailed("it crashed with SIGILL")


RECIPE = FakeRecipe()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRecipe:
    recipe = FakeRecipe()
    monkeypatch.setitem(environments.RECIPES, "llamacpp", f"{__name__}:RECIPE")
    monkeypatch.setattr(sys.modules[__name__], "RECIPE", recipe)
    return recipe


def files() -> list[str]:
    return sorted(str(path.relative_to(paths.engines_dir())) for path in paths.engines_dir().rglob("*"))


def test_install_find_and_remove(fake: FakeRecipe) -> None:
    said: list[str] = []
    assert install("llamacpp", say=said.append) == paths.engines_dir() / "llamacpp"
    assert files() == [".llamacpp.lock", "llamacpp", "llamacpp/library"]
    assert said[-1].startswith("installed: ")
    assert remove("llamacpp") is True
    assert files() == [".llamacpp.lock"]
    assert remove("llamacpp") is False


def test_if_missing_leaves_what_is_there(fake: FakeRecipe) -> None:
    install("llamacpp", say=print)
    fake.content = "two"
    assert install("llamacpp", if_missing=True).read_text() == "one"
    install("llamacpp", say=print)
    assert (paths.engines_dir() / "llamacpp" / "library").read_text() == "two"


@pytest.mark.parametrize(
    "failure", [InstallFailed("no network"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_a_failed_install_leaves_the_old_one_and_nothing_else(fake: FakeRecipe, failure: BaseException) -> None:
    install("llamacpp", say=print)
    fake.content, fake.fails_with = "two", failure
    with pytest.raises((InstallFailed, KeyboardInterrupt)):
        install("llamacpp", say=print)
    assert files() == [".llamacpp.lock", "llamacpp", "llamacpp/library"]
    assert fake.find() is not None
    assert (paths.engines_dir() / "llamacpp" / "library").read_text() == "one"


def test_leftovers_of_a_killed_install_are_swept(fake: FakeRecipe) -> None:
    leftover = paths.engines_dir() / ".llamacpp-new-12345"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half made")
    assert fake.find() is None
    install("llamacpp", say=print)
    assert files() == [".llamacpp.lock", "llamacpp", "llamacpp/library"]


def test_a_folder_that_cannot_be_made_is_named(fake: FakeRecipe, clean_home: Path) -> None:
    (clean_home / "llmrun").write_text("a file is in the way")
    with pytest.raises(InstallFailed, match="cannot be written"):
        install("llamacpp", say=print)


def _install_slowly(said: multiprocessing.Queue[str]) -> None:
    RECIPE.seconds = 0.5
    environments.RECIPES["llamacpp"] = f"{__name__}:RECIPE"
    install("llamacpp", if_missing=True, say=said.put)
    said.put("over")


def test_two_installs_at_once_build_once(fake: FakeRecipe) -> None:
    context = multiprocessing.get_context("spawn")
    said: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=_install_slowly, args=(said,)) for _ in range(2)]
    for process in processes:
        process.start()
    lines = []
    while lines.count("over") < 2:
        lines.append(said.get(timeout=30))
    for process in processes:
        process.join(30)
    assert sum(line.startswith("installed") for line in lines) == 1


def test_the_list_says_what_to_do(fake: FakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    status = {row.name: row for row in list_engines()}
    assert (status["llamacpp"].is_usable, status["llamacpp"].command) == (False, "llmrun engines install llamacpp")
    assert status["echo_core"].is_usable
    monkeypatch.setenv("LLMRUN_LLAMACPP_LIB", "/nowhere.so")
    monkeypatch.setitem(environments.RECIPES, "llamacpp", "runner.engines.llamacpp.recipe:RECIPE")
    (broken,) = [row for row in list_engines() if row.name == "llamacpp"]
    assert not broken.is_usable
    assert "/nowhere.so" in broken.detail


def test_check_tries_it_for_real(fake: FakeRecipe) -> None:
    assert not check("llamacpp").is_usable
    install("llamacpp", say=print)
    status = check("llamacpp")
    assert not status.is_usable
    assert "SIGILL" in status.detail


@pytest.mark.parametrize(("wish", "is_cpu"), [({}, True), ({"accelerator": "cuda"}, False), ({"cpu": True}, True)])
def test_a_machine_without_nvidia_gets_the_build_for_the_cpu(
    fake: FakeRecipe, monkeypatch: pytest.MonkeyPatch, wish: dict[str, Any], is_cpu: bool
) -> None:
    fake.takes = frozenset({"cpu", "cuda"})
    monkeypatch.setattr(environments, "_has_nvidia", lambda: False)
    said: list[str] = []
    install("llamacpp", say=said.append, **wish)
    assert fake.wish is not None and fake.wish.cpu is is_cpu
    assert any("no NVIDIA driver" in line for line in said) is (wish == {})
    monkeypatch.setattr(environments, "_has_nvidia", lambda: True)
    install("llamacpp", say=said.append)
    assert not fake.wish.cpu


def test_unknown_and_unneeded_engines() -> None:
    with pytest.raises(UsageError, match="no engine 'lama'"):
        install("lama")
    with pytest.raises(UsageError, match="echo_core needs no installation"):
        install("echo_core")
    with pytest.raises(UsageError, match="triton is not built yet"):
        remove("triton")


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: Could not find a version that satisfies the requirement x (from versions: none)", "index"),
        ("Temporary failure in name resolution", "network"),
        ("CMake Error: No CMAKE_CXX_COMPILER could be found.", "--prebuilt"),
        ("No module named pip", "ensurepip"),
    ],
)
def test_pips_failures_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, hint: str) -> None:
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "building"\necho "{output}" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(pip.sys, "executable", str(fake))
    lines: list[str] = []
    with pytest.raises(InstallFailed) as failure:
        install_into(tmp_path / "target", "x==1", on_line=lines.append)
    assert hint in failure.value.hint
    assert "x==1" in str(failure.value)
    assert "building\n" in lines
    assert output in failure.value.log_tail


def test_an_interrupted_pip_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    pid_file = tmp_path / "pid"
    fake.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {pid_file}\necho started\nwait\n")
    fake.chmod(0o755)
    monkeypatch.setattr(pip.sys, "executable", str(fake))

    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install_into(tmp_path / "target", "x==1", on_line=interrupt)
    pid = int(pid_file.read_text())
    deadline = time.monotonic() + 10
    while _is_running(pid):
        assert time.monotonic() < deadline, "the build goes on after the interrupt"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class TestLlamaCppRecipe:
    """Decisions of the recipe; pip is replaced by a note of what it was asked."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
        calls: list[tuple[str, dict[str, str]]] = []

        def install_into(folder: Path, requirement: str, *, env: dict[str, str] | None = None, **_: object) -> None:
            calls.append((requirement, env or {}))
            (folder / "llama_cpp" / "lib").mkdir(parents=True)
            (folder / "include").mkdir()
            for name in ("libllama.so", "libllama.so.0"):
                (folder / "llama_cpp" / "lib" / name).write_text("library")
            (folder / "llama_cpp" / "llama.py").write_text("code")

        monkeypatch.setattr(llamacpp_recipe, "install_into", install_into)
        monkeypatch.setattr(llamacpp_recipe, "extra_bufts_work", lambda library: True)
        return calls

    def build(self, folder: Path, **wish: object) -> list[str]:
        folder.mkdir()
        said: list[str] = []
        llamacpp_recipe.RECIPE.build(folder, Wish(**wish), said.append)
        return said

    def test_compiles_lean_and_keeps_libraries_only(
        self, asked: list[tuple[str, dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CXX", "sh")
        self.build(tmp_path / "new")
        requirement, env = asked[0]
        assert requirement == "llama_cpp_python==0.3.36"
        assert "-DLLAVA_BUILD=OFF" in env["CMAKE_ARGS"]
        for flag in env["CMAKE_ARGS"].split():
            for name in ("nocommon.cmake", "amxfix.h"):
                if name in flag:
                    assert Path("/" + flag.split("/", 1)[1]).is_file()
        kept = sorted(str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*"))
        assert kept == ["llama_cpp", "llama_cpp/lib", "llama_cpp/lib/libllama.so", "llama_cpp/lib/libllama.so.0"]
        assert (tmp_path / "new" / "llama_cpp" / "lib" / "libllama.so.0").is_symlink()

    def test_without_a_compiler_it_takes_the_wheel_and_says_so(
        self, asked: list[tuple[str, dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        said = self.build(tmp_path / "new")
        assert asked[0][0].startswith("xllamacpp==")
        assert any("no C++ compiler" in line for line in said)
        for wish in ({"accelerator": "cuda"}, {"version": "0.3.30"}):
            with pytest.raises(InstallFailed, match="no C\\+\\+ compiler"):
                self.build(tmp_path / str(wish), **wish)

    def test_accelerators_need_their_tools(
        self, asked: list[tuple[str, dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CXX", "sh")
        nvcc = tmp_path / "nvcc"
        nvcc.write_text("")
        monkeypatch.setenv("CUDACXX", str(nvcc))
        self.build(tmp_path / "cuda", accelerator="cuda", version="0.3.30")
        assert asked[0][0] == "llama_cpp_python==0.3.30"
        assert "-DGGML_CUDA=ON" in asked[0][1]["CMAKE_ARGS"]
        with pytest.raises(UsageError, match="--prebuilt is for the CPU"):
            self.build(tmp_path / "both", accelerator="cuda", prebuilt=True)
        monkeypatch.setattr(llamacpp_recipe.shutil, "which", lambda name: "/bin/sh" if name == "sh" else None)
        with pytest.raises(InstallFailed, match="glslc"):
            self.build(tmp_path / "vulkan", accelerator="vulkan")
        if sys.platform != "darwin":
            with pytest.raises(UsageError, match="macOS"):
                self.build(tmp_path / "metal", accelerator="metal")

    def test_progress_speaks_about_ten_times(self) -> None:
        said: list[str] = []
        on_line = llamacpp_recipe._progress("compiling", said.append)
        for step in range(1, 84):
            on_line(f"  [{step}/83] Building CXX object x.o")
        on_line("something else")
        assert len(said) == 10
        assert said[-1] == "compiling [83/83]"


def test_the_recipes_module_is_all_that_an_install_imports() -> None:
    code = "import sys, runner.engines.environments; print({'numpy', 'llguidance', 'aiohttp'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "set()"
