"""How llama.cpp is installed: compiled lean for this CPU or GPU, or prebuilt where there is no compiler.

The compile leaves out what llmrun never calls (common, mtmd, httplib: two thirds of the stock build's time) and puts
right what crashes with AMX (amxfix.h). Only the shared libraries are kept. Folders, locks and renames are
environments.py's.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from runner.engines.environments import Accelerator, Say, Wish
from runner.engines.llamacpp.library import Library, find_library, installed_dir, library_in
from runner.engines.llamacpp.probe import extra_bufts_work
from runner.engines.pins import LLAMA_CPP_PREBUILT, LLAMA_CPP_SOURCE
from runner.engines.pip import InstallFailed, install_into
from runner.errors import UsageError

_HERE = Path(__file__).parent
_STEP = re.compile(r"\[(\d+)/(\d+)\]")
_REPORTS = 10
_COMPILERS = ("c++", "g++", "clang++", "cl")
_FLAGS: dict[Accelerator, str] = {
    "cuda": "-DGGML_CUDA=ON",
    "metal": "-DGGML_METAL=ON",
    "vulkan": "-DGGML_VULKAN=ON",
}


class LlamaCppRecipe:
    """See environments.Recipe."""

    takes = frozenset({"prebuilt", "cuda", "metal", "vulkan", "version"})

    def build(self, folder: Path, wish: Wish, say: Say) -> None:
        """See Recipe."""
        if self._is_prebuilt(wish, say):
            pin = LLAMA_CPP_PREBUILT
            say(f"downloading {pin.package} {wish.version or pin.version} (llama.cpp, prebuilt, 34 MB)")
            install_into(folder, pin.requirement(wish.version), arguments=("--only-binary=:all:",))
        else:
            _compile(folder, wish, say)
        _keep_libraries(folder)
        library = library_in(folder)
        if library is None:
            raise InstallFailed("the package was installed, but there is no llama.cpp library in it")
        say("trying it")
        extra_bufts_work(library)

    def _is_prebuilt(self, wish: Wish, say: Say) -> bool:
        if wish.prebuilt:
            if wish.accelerator is not None:
                raise UsageError(f"--prebuilt is for the CPU; for --{wish.accelerator} llama.cpp is compiled here")
            return True
        if _compiler() is not None:
            return False
        if wish.accelerator is not None:
            raise InstallFailed(
                f"--{wish.accelerator} compiles llama.cpp, and there is no C++ compiler here",
                hint="install one (Debian, Ubuntu: apt install g++)",
            )
        if wish.version is not None:
            raise InstallFailed(
                f"--version {wish.version} would be compiled, and there is no C++ compiler here",
                hint="install one (Debian, Ubuntu: apt install g++), or use --prebuilt with a version of xllamacpp",
            )
        say("there is no C++ compiler here: taking the prebuilt llama.cpp (slower on CPUs with AVX512)")
        return True

    def find(self, chosen: str | None = None) -> Path | None:
        """See Recipe; there is no Python to choose."""
        return find_library()

    def describe(self, found: Path) -> str:
        """See Recipe."""
        root = installed_dir()
        if found.is_relative_to(root):
            names = [path.name.removesuffix(".dist-info") for path in root.glob("*.dist-info")]
            return f"{', '.join(names) or 'llama.cpp'} in {root}"
        return str(found)

    def version(self, found: Path) -> str:
        """See Recipe."""
        root = installed_dir()
        names = [path.name for path in root.glob("*.dist-info")] if found.is_relative_to(root) else []
        return names[0].removesuffix(".dist-info").rpartition("-")[2] if names else ""

    def check(self, found: Path) -> str:
        """See Recipe."""
        repacks = extra_bufts_work(found)
        library = Library(found)
        devices = ", ".join(device.name for device in library.devices()) or "CPU"
        note = "" if repacks else ", weights not repacked (it crashes with that)"
        return f"llama.cpp {library.version} computes on {devices}{note}; {self.describe(found)}"


RECIPE = LlamaCppRecipe()


def _compiler() -> str | None:
    chosen = os.environ.get("CXX")
    return next((path for name in ((chosen,) if chosen else _COMPILERS) if (path := shutil.which(name))), None)


def _compile(folder: Path, wish: Wish, say: Say) -> None:
    what, minutes = ("this CPU", 2) if wish.accelerator is None else (wish.accelerator.upper(), 15)
    flags = cmake_flags(wish.accelerator)
    flags += [os.environ["CMAKE_ARGS"]] if os.environ.get("CMAKE_ARGS") else []
    headline = f"compiling llama.cpp for {what}, about {minutes} minutes"
    say(headline)
    install_into(
        folder,
        LLAMA_CPP_SOURCE.requirement(wish.version),
        env={"CMAKE_ARGS": " ".join(flags)},
        arguments=(f"--no-binary={LLAMA_CPP_SOURCE.package}",),
        on_line=_progress(headline, say),
    )


def cmake_flags(accelerator: Accelerator | None) -> list[str]:
    """Configuration of the lean build. Raises InstallFailed or UsageError where an accelerator's tools are missing."""
    flags = [
        "-DLLAVA_BUILD=OFF",
        f"-DCMAKE_PROJECT_INCLUDE={_plain_path('nocommon.cmake')}",
        "-DGGML_NATIVE=ON",
        "-DGGML_CCACHE=OFF",
        f"-DCMAKE_CXX_FLAGS=-include{_plain_path('amxfix.h')}",
    ]
    if accelerator is not None:
        flags += [_FLAGS[accelerator], *_accelerator_flags(accelerator)]
    elif sys.platform == "darwin":
        flags.append("-DGGML_METAL=OFF")
    return flags


def _plain_path(name: str) -> str:
    path = str(_HERE / name)
    if " " in path:
        raise InstallFailed(
            f"llama.cpp's build cannot take a path with a space: {path}", hint="use --prebuilt, or move the environment"
        )
    return path


def _accelerator_flags(accelerator: Accelerator) -> list[str]:
    if accelerator == "metal":
        if sys.platform != "darwin":
            raise UsageError("--metal is for macOS; here use --cuda, --vulkan or neither")
        return []
    if accelerator == "cuda":
        return [f"-DCMAKE_CUDA_COMPILER={_cuda_compiler()}"]
    if shutil.which("glslc") is None:
        raise InstallFailed(
            "--vulkan needs glslc and the Vulkan headers",
            hint="install the Vulkan SDK (Debian, Ubuntu: apt install glslc libvulkan-dev spirv-headers)",
        )
    return []


def _cuda_compiler() -> str:
    places = (os.environ.get("CUDACXX"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc")
    for place in places:
        if place and Path(place).is_file():
            return place
    raise InstallFailed(
        "--cuda needs nvcc, NVIDIA's compiler", hint="install the CUDA toolkit, or set CUDACXX to the path of nvcc"
    )


def _progress(headline: str, say: Callable[[str], None]) -> Callable[[str], None]:
    """Watches ninja's [step/steps] and speaks about ten times."""
    last = 0

    def on_line(line: str) -> None:
        nonlocal last
        match = _STEP.search(line)
        if match is None:
            if re.match(r"\s*Downloading .*\.tar\.gz", line):
                say(f"downloading the source: {line.split()[-2].strip('(')} {line.split()[-1].strip(')')}")
            return
        step, steps = int(match.group(1)), int(match.group(2))
        tenth = step * _REPORTS // max(1, steps)
        if steps > _REPORTS and tenth > last:
            last = tenth
            say(f"{headline} [{step}/{steps}]")

    return on_line


def _keep_libraries(folder: Path) -> None:
    """Only shared libraries and the licence are needed; the same library under three names becomes links."""
    keep = {"llama_cpp", "xllamacpp"}
    for entry in list(folder.iterdir()):
        if entry.name not in keep and not entry.name.endswith((".dist-info", ".libs")):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in list((folder / "llama_cpp").glob("*")):
        if entry.name != "lib":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    _link_copies(folder / "llama_cpp" / "lib")


def _link_copies(folder: Path) -> None:
    files = sorted((path for path in folder.glob("*") if path.is_file()), key=lambda path: (len(path.name), path.name))
    for index, path in enumerate(files):
        for original in files[:index]:
            if not original.is_symlink() and filecmp.cmp(path, original, shallow=False):
                with contextlib.suppress(OSError):
                    path.unlink()
                    path.symlink_to(original.name)
                break
