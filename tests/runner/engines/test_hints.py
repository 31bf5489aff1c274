"""Lines that engines really write when they fail to start, and the advice that a user gets for each."""

from __future__ import annotations

import pytest

from runner.engines import ENGINES
from runner.engines.hint_rows import ROWS
from runner.engines.hints import find_cause, likely_fix

LINES = [
    ("RuntimeError: Failed to infer device type, please set the environment variable", "no usable GPU", "--cpu"),
    ("RuntimeError: Found no NVIDIA driver on your system. Please check that you have", "no usable GPU", "nvidia-smi"),
    ("RuntimeError: No CUDA GPUs are available", "no usable GPU", "out=native"),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020). Please update",
        "driver is too old",
        "--version",
    ),
    ("CUDA driver version is insufficient for CUDA runtime version", "driver is too old", "update the driver"),
    (
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "not built for this GPU",
        "",
    ),
    ("ImportError: [sgl_kernel] CRITICAL: Could not load any common_ops library!", "not built for this GPU", ""),
    (
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has",
        "not built for this GPU",
        "--dtype float16",
    ),
    (
        "ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 71.2 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "other programs use",
        "--gpu-memory-utilization",
    ),
    (
        "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (9.1 GiB). Based on the available memory, the "
        "estimated maximum model length is 74432. Try increasing `gpu_memory_utilization`",
        "does not fit",
        "--context-length 74432",
    ),
    ("ValueError: No available memory for the cache blocks. Try increasing", "no room for a KV cache", "raise --gpu"),
    (
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
        "no room for a KV",
        "raise --gpu",
    ),
    (
        "ValueError: Available memory on node 0 (14.51/23.54 GiB) on kv cache allocation is less than requested memory "
        "for kv (999.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory",
        "does not fit into memory",
        "VLLM_CPU_KVCACHE_SPACE",
    ),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "not enough memory", "smaller model"),
    (
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported",
        "does not know the model's architecture",
        "out=native",
    ),
    (
        "ValueError: The checkpoint you are trying to load has model type `foo` but Transformers does not recognize "
        "this architecture.",
        "does not know the model's architecture",
        "",
    ),
    (
        "called `Result::unwrap()` on an `Err` value: Unknown GGUF architecture `qwen35`",
        "architecture",
        "another engine",
    ),
    ("error loading model architecture: unknown model architecture: 'mistral3'", "architecture", "another engine"),
    (
        "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size=80). Reasons: "
        "{FLASH_ATTN: [head_size not supported]}",
        "head size",
        "--dtype",
    ),
    ("GatedRepoError: 401 Client Error. Access to model meta-llama/Llama-3 is restricted", "gated", "HF_TOKEN"),
    ("OSError: You are trying to access a gated repo.", "gated", "accept its terms"),
    ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files", "Hub", "llmrun pull"),
    ("OSError: /m does not appear to have a file named config.json.", "not complete", "llmrun pull"),
    ("RuntimeError: Cannot find any model weights with `/m`", "not complete", "llmrun pull"),
    ("ImportError: libcudart.so.12: cannot open shared object file: No such file", "library of CUDA 12", "install"),
    ("ImportError: libmpi.so.40: cannot open shared object file: No such file", "needs MPI", "apt install"),
    ("ImportError: /x/vllm/_C.abi3.so: undefined symbol: _ZNK3c106SymInt6sym_neERKS0_", "another version of torch", ""),
    ("RuntimeError: operator torchvision::nms does not exist", "torchvision", "`llmrun engines install vllm`"),
    (
        "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: "
        "Current Version: 228, Serialized Engine Version: 237)",
        "another version of TensorRT-LLM",
        "build-engine",
    ),
    (
        "The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 8.0, please "
        "rebuild.",
        "compute 8.6, this one is 8.0",
        "build them here",
    ),
    (
        "ValueError: World size (4) is larger than the number of available GPUs (1) in this node.",
        "more GPUs",
        "--tensor",
    ),
    (
        "ValueError: Total number of attention heads (14) must be divisible by tensor parallel size (4).",
        "cannot be divided",
        "--tensor-parallel-size",
    ),
    (
        "ValueError: Please pass the argument `trust_remote_code=True` to allow custom code",
        "own code",
        "trust_remote_code",
    ),
    ("FileNotFoundError: [Errno 2] No such file or directory: '/m/config.json'", "a file is not there", ""),
]


@pytest.mark.parametrize(("line", "cause", "step"), LINES, ids=[line[:50] for line, _, _ in LINES])
def test_a_failed_start_names_the_cause_and_the_next_step(line: str, cause: str, step: str) -> None:
    noise = (
        'INFO 11-25 08:00:00 [core.py:1] starting\nTraceback (most recent call last):\n  File "x.py", line 1, in f\n'
    )
    advice = likely_fix(
        f"{noise}(EngineCore_0 pid=12) {line}\n[rank0]:[W1125] Warning: no file or directory", 1, "vllm"
    )
    assert cause in advice
    assert step in advice
    assert "ENGINE" not in advice


def test_the_cause_is_the_last_exception_without_the_marks_of_loggers() -> None:
    log = "\n".join(
        [
            "ValueError: an older one",
            "(EngineCore pid=77) ERROR 11-25 07:44:58 [core.py:1482] RuntimeError: the reason",
            "[rank0]: ValueError: Available memory on node 0",
            "[rank0]:[W1125 07:45:00.1 ProcessGroup.cpp:1] Warning: destroy_process_group() was not called",
            "nothing of interest",
        ]
    )
    assert find_cause(log) == "ValueError: Available memory on node 0"
    assert find_cause("\n".join(log.splitlines()[:2])) == "RuntimeError: the reason"
    assert find_cause("all is well\nError handling: on") == ""


def test_what_pydantic_found_wrong_stands_after_the_exception() -> None:
    log = (
        "(Main pid=1) Traceback (most recent call last):\n"
        "(Main pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "(Main pid=1)   Value error, User-specified max_model_len (100000) is greater than the derived max_model_len "
        "(max_position_embeddings=2048.0 or model_max_length=None in model's config.json). To allow overriding this "
        "maximum, set an env var. [type=value_error, input_value=ArgsKwargs(), input_type=ArgsKwargs]\n"
        "(Main pid=1)     For further information visit https://errors.pydantic.dev/2.14/v/value_error\n"
    )
    assert "1 validation error for ModelConfig: User-specified max_model_len (100000) is greater" in find_cause(log)
    assert "[type=" not in find_cause(log)
    assert "made for 2048 tokens" in likely_fix(log)
    place = "x.ValidationError: 1 validation error for CacheConfig\nblock_size\n  Input should be 8 [type=x]\n"
    assert find_cause(place).endswith("CacheConfig: block_size Input should be 8")


def test_what_the_exception_says_counts_more_than_what_stands_around_it() -> None:
    log = (
        "warning: /x: No such file or directory\nValueError: World size (2) is larger than the number of available GPUs"
    )
    assert "--tensor-parallel-size" in likely_fix(log, 1)


def test_every_row_can_be_written() -> None:
    for pattern, advice in ROWS:
        assert advice.format(*"0123456789"), pattern


def test_an_engine_may_have_rows_of_its_own() -> None:
    for entry in ENGINES.values():
        assert isinstance(likely_fix("nothing known", 1, entry.name), str)
