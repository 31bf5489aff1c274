"""Rules over the machine's numbers: threads, memory, layers on the GPU, settings, where the library lies."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.models import make_random_llama_gguf
from runner import paths
from runner.engines import cpus, host_memory
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.llamacpp import library, memory, offload, settings
from runner.engines.llamacpp.library import Device
from runner.errors import EngineStartFailed, UsageError
from tests.runner.fakes import make_card


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def siblings(*groups: str) -> dict[str, str]:
    cpu_files = {}
    for cpu, group in enumerate(groups):
        cpu_files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = group + "\n"
    return cpu_files


def test_smt_siblings_are_one_core(tmp_path: Path) -> None:
    root = write(tmp_path, siblings("0,2", "1,3", "0,2", "1,3"))
    assert cpus.physical_cores({0, 1, 2, 3}, root) == 2
    assert cpus.physical_cores({0, 2}, root) == 1
    assert cpus.physical_cores({0, 1, 9}, root) == 3  # 9 has no topology here


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1.0),
        ({"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4.0),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_cgroup_quotas(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpus.cgroup_quota(write(tmp_path, files)) == quota


def test_threads_are_cores_within_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, siblings("0", "1", "2", "3"))
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert cpus.usable_cores(root) == 3
    write(root, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert cpus.usable_cores(root) == 1


GIB = 2**30


def plan(**changes: object) -> memory.KvPlan:
    arguments = {
        "asked": None,
        "train_context": 8192,
        "max_running": 4,
        "bytes_per_token": 128 * 1024,
        "free_bytes": 100 * GIB,
    }
    return memory.plan_kv(**{**arguments, **changes})


def test_the_context_is_the_models_where_it_fits() -> None:
    assert plan() == memory.KvPlan(context_length=8192, num_cells=32768, is_split=True)
    assert plan(train_context=0).context_length == 4096
    shared = plan(free_bytes=3 * GIB)
    assert (shared.context_length, shared.note) == (8192, "")
    assert 8192 <= shared.num_cells < 32768
    assert not shared.is_split, "one pool, where not every request can have a whole context"


def test_a_smaller_context_is_said() -> None:
    small = plan(train_context=131072, free_bytes=4 * GIB)
    assert small.context_length == 16384
    assert "not the model's 131,072" in small.note
    assert "16.0 GiB" in small.note


def test_what_was_asked_is_honoured_or_refused() -> None:
    assert plan(asked=1000, max_running=1) == memory.KvPlan(context_length=1000, num_cells=1024, is_split=True)
    assert plan(asked=30_000, free_bytes=4 * GIB).context_length == 30_000
    with pytest.raises(EngineStartFailed, match=r"needs 16.0 GiB of KV cache; 4.0 GiB are free"):
        plan(asked=131072, free_bytes=4 * GIB)
    with pytest.raises(EngineStartFailed, match="kv_cells=100"):
        plan(num_cells=100)


def test_free_memory_is_the_cgroups_if_that_is_less(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/meminfo": "MemTotal: 100 kB\nMemAvailable:  4096 kB\n"})
    assert host_memory.free_host_bytes(root) == 4096 * 1024
    write(
        root,
        {"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/x/memory.max": "5000", "sys/fs/cgroup/x/memory.current": "4000"},
    )
    assert host_memory.free_host_bytes(root) == 1000


def gpu(free_bytes: int) -> Device:
    return Device("GPU", 1, free_bytes, free_bytes)


def test_layers_go_to_the_gpu_as_far_as_they_fit(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    with model.open("wb") as file:
        file.truncate(10 * GIB)  # sparse
    path = str(model)
    assert offload.choose_gpu_layers(None, path, [], num_layers=int) == (0, False)
    assert offload.choose_gpu_layers(None, path, [gpu(20 * GIB)], num_layers=int) == (-1, True)
    assert offload.choose_gpu_layers(None, path, [gpu(6 * GIB), gpu(7 * GIB)], num_layers=int) == (-1, True)
    part = offload.choose_gpu_layers(None, path, [gpu(6 * GIB)], num_layers=lambda: 32)
    assert 10 < part.gpu_layers < 20
    assert not part.is_full
    assert offload.choose_gpu_layers(5, path, [gpu(20 * GIB)], num_layers=int) == (5, False)
    assert offload.choose_gpu_layers(-1, path, [gpu(1)], num_layers=int) == (-1, True)


def test_layers_are_counted_in_the_file(tmp_path: Path) -> None:
    path = make_random_llama_gguf(tmp_path / "m.gguf", dim=32, layers=3, ffn=32, vocab=300, heads=1, dtype="f32")
    assert offload.count_layers(str(path)) == 3


def test_a_split_models_parts_count_together(tmp_path: Path) -> None:
    for part in range(1, 4):
        (tmp_path / f"m-{part:05}-of-00003.gguf").write_bytes(b"x" * 10 * part)
    assert offload.weight_bytes(tmp_path / "m-00001-of-00003.gguf") == 60


def test_settings() -> None:
    extra = settings.parse_extra({"flash_attn": True, "mlock": True, "cache_type_k": "q8_0"})
    assert extra.flash_attn_type(10**12, is_quantized=False) == 1
    assert extra.load_mode == 3
    assert settings.parse_extra({}).load_mode == -1
    assert settings.parse_extra({"mmap": False}).load_mode == 0
    assert settings.parse_extra({"flash_attn": "off"}).flash_attn_type(10**12, is_quantized=False) == 0
    for extra_args, message in (
        ({"cache_type_k": "q9"}, "cache_type_k"),
        ({"n_batch": 0}, "at least 1"),
        ({"typo": 1}, "unknown engine argument 'typo'"),
    ):
        with pytest.raises(UsageError, match=message):
            settings.parse_extra(extra_args)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"argument": "x"}, "takes no argument"),
        ({"tail": ("--foo",)}, "nothing after --"),
        ({"options": EngineOptions(num_nodes=2)}, "num-nodes"),
        ({"options": EngineOptions(kv_cache_block_size=16)}, "kv-cache-block-size"),
        ({"options": EngineOptions(max_running=1000)}, "more than 256"),
        ({"options": EngineOptions(threads=0)}, "at least 1"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings.check_spec(EngineSpec(name="llamacpp", card=make_card(tmp_path), **fields))


def test_where_the_library_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineStartFailed, match="not installed") as failure:
        library.require_library()
    assert failure.value.hint == "llmrun engines install llamacpp"
    installed = paths.engines_dir() / "llamacpp" / "xllamacpp" / "xllamacpp.abi3.so"
    write(installed.parent, {installed.name: ""})
    assert library.find_library() == installed
    chosen = tmp_path / "libllama.so"
    monkeypatch.setenv(library.LIBRARY_VARIABLE, str(chosen))
    with pytest.raises(EngineStartFailed, match="no such file"):
        library.find_library()
    chosen.write_text("")
    assert library.find_library() == chosen


def test_the_build_hides_avx512_fp16() -> None:
    """With it, ggml's float16 loops are 128 wide, and attention over heads of 64 is scalar code."""
    compiler = shutil.which("g++")
    if compiler is None or os.uname().machine != "x86_64":
        pytest.skip("no g++ for x86-64 here")
    header = Path(library.__file__).with_name("amxfix.h")
    source = "#ifdef __AVX512FP16__\n#error it is on\n#endif\n"
    command = [compiler, "-D__AVX512FP16__=1", f"-include{header}", "-x", "c++", "-fsyntax-only", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
