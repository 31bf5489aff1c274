"""The checks of `llmrun doctor`: each looks at one thing and returns findings. Changes nothing, starts no engine.

Secrets are never read out: a token is present or not.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from runner import __version__, paths
from runner.console import colours
from runner.engines.cpus import cpu_flags

_GIB = 2**30
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "neon", "asimd", "sve")
_PORTS = (8080,)


class Check(NamedTuple):
    """One finding; `next_step` is empty where nothing has to be done."""

    name: str
    status: Literal["ok", "warn"]
    detail: str
    next_step: str = ""


def check_python() -> list[Check]:
    """llmrun, Python and the platform."""
    where = "a virtual environment" if sys.prefix != sys.base_prefix else "the system's environment"
    return [
        Check("llmrun", "ok", __version__),
        Check("python", "ok", f"{platform.python_version()} in {where}, {sys.executable}"),
        Check("platform", "ok", f"{platform.system()} {platform.release()} {platform.machine()}"),
    ]


def check_cpu() -> list[Check]:
    """Cores that we may use, how many are free now, and the vector instructions that matter."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    free = max(allowed - round(load), 0)
    isa = " ".join(flag for flag in _ISA if flag in cpu_flags()) or "no known vector flags"
    step = "other programs use the cores; answers will be slow meanwhile" if free == 0 else ""
    return [Check("cpu", "ok" if free else "warn", f"{allowed} cores usable, about {free} free; {isa}", step)]


def check_memory() -> list[Check]:
    """Memory in all and free; a container's limit is the smaller one."""
    import psutil

    memory = psutil.virtual_memory()
    low = memory.available < 2 * _GIB
    step = "close something, or use a smaller quantisation" if low else ""
    detail = f"{memory.available / _GIB:.1f} GiB of {memory.total / _GIB:.1f} GiB available"
    return [Check("memory", "warn" if low else "ok", detail, step)]


def check_disk() -> list[Check]:
    """Room where models and engines are kept."""
    places = {"disk models": _hub_cache(), "disk engines": paths.engines_dir(), "disk cache": paths.cache_dir()}
    return [_room(name, place) for name, place in places.items()]


def _room(name: str, place: Path) -> Check:
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / _GIB
    if not os.access(existing, os.W_OK):
        return Check(
            name, "warn", f"{place} cannot be written", f"make {existing} writable, or set LLMRUN_HOME/HF_HOME"
        )
    step = "free some space, or move it with HF_HOME or LLMRUN_HOME" if free < 10 else ""
    return Check(name, "warn" if free < 10 else "ok", f"{place}: {free:.1f} GiB free", step)


def _hub_cache() -> Path:
    cache = os.environ.get("HF_HUB_CACHE")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(cache or Path(home) / "hub").expanduser()


def check_gpu() -> list[Check]:
    """NVIDIA GPUs, as nvidia-smi tells."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [Check("gpu", "ok", "no NVIDIA driver here; engines run on the CPU")]
    query = [tool, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return [Check("gpu", "warn", f"nvidia-smi fails: {said[-1] if said else done.returncode}", "check the driver")]
    return [Check("gpu", "ok", line.strip()) for line in done.stdout.splitlines() if line.strip()]


def check_compiler() -> list[Check]:
    """What building llama.cpp needs."""
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        step = "install a C++ compiler (Debian: apt install g++), or: llmrun engines install llamacpp --prebuilt"
        return [Check("compiler", "warn", "none; llama.cpp cannot be built here", step)]
    return [Check("compiler", "ok", f"{shutil.which(compiler)}")]


def check_installer() -> list[Check]:
    """What makes an engine's environment."""
    import importlib.util

    from runner.engines.new_environment import find_uv

    uv = find_uv()
    if uv is not None:
        return [Check("installer", "ok", f"uv, {uv}")]
    if importlib.util.find_spec("ensurepip") is None:
        step = "install uv, or venv (Debian: apt install python3-venv)"
        return [Check("installer", "warn", "neither uv nor venv with pip; no engine can be installed", step)]
    return [Check("installer", "ok", "venv and pip; uv would be quicker")]


def check_engines() -> list[Check]:
    """Which engines are usable, and the command that makes one so."""
    from runner.engines.environments import list_engines

    return [
        Check(
            f"engine {status.name}",
            "ok" if status.is_usable or not status.command else "warn",
            status.detail,
            "" if status.is_usable else status.command,
        )
        for status in list_engines()
    ]


def check_hub() -> list[Check]:
    """The Hugging Face cache, and whether a token is there (never its value)."""
    cache = _hub_cache()
    num_models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    token_file = cache.parent / "token"
    has_token = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")) or token_file.is_file()
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    step = "unset HF_HUB_OFFLINE to download models" if offline else ""
    return [
        Check("hub cache", "ok", f"{num_models} models in {cache}"),
        Check("hub token", "ok", "present" if has_token else "none; only gated models need one (set HF_TOKEN)"),
        Check("hub access", "warn" if offline else "ok", "offline by HF_HUB_OFFLINE" if offline else "allowed", step),
    ]


def check_ports() -> list[Check]:
    """Whether in=http's default port is free."""
    return [_port(port) for port in _PORTS]


def _port(port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check(f"port {port}", "warn", f"{error.strerror}", f"llmrun in=http --http-port {port + 1} …")
    return Check(f"port {port}", "ok", "free")


def check_terminal() -> list[Check]:
    """What in=text will find."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    size = shutil.get_terminal_size()
    colour = "colours" if colours(sys.stdout) else "no colours"
    encoding = (sys.stdout.encoding or "?").lower()
    detail = f"{os.environ.get('TERM', 'no TERM')}, {size.columns}x{size.lines}, {colour}, {encoding}"
    if "utf" not in encoding:
        return [Check("terminal", "warn", detail, "set LC_ALL=C.UTF-8, or other characters than ASCII are lost")]
    return [Check("terminal", "ok", detail if is_terminal else f"not a terminal here ({encoding})")]


CHECKS: tuple[Callable[[], list[Check]], ...] = (
    check_python,
    check_cpu,
    check_memory,
    check_disk,
    check_gpu,
    check_compiler,
    check_installer,
    check_engines,
    check_hub,
    check_ports,
    check_terminal,
)
