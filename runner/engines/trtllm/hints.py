"""What the log of a failed TensorRT-LLM says, and the next step (rows as in hint_rows.py).

Sources: NVIDIA/TensorRT-LLM #330 #753 #1247 #1796 #1838 #1992 #2021 #2058 #2332 #3031 #6102 and its
llmapi/llm_args.py, triton-inference-server/tensorrtllm_backend #222 #235 #320 #375 #531.
"""

from __future__ import annotations

from runner.engines.hint_rows import Row

_AGAIN = "build it again with the TensorRT-LLM that is installed: llmrun build-engine MODEL OUT"

ROWS: tuple[Row, ...] = (
    (
        r"Version tag does not match.*Current Version: (\d+), Serialized Engine Version: (\d+)",
        "the engine was built by another TensorRT (its format is {1}, this one reads {0}): " + _AGAIN,
    ),
    (
        r"kSERIALIZATION_VERSION|Failed to deserialize cuda engine|deserializeCudaEngine|"
        r"Expected length != real length",
        "the engine file is of another TensorRT, or is damaged: " + _AGAIN,
    ),
    (
        r"incompatible device, expecting compute ([\d.]+) got compute ([\d.]+)",
        "the engine was built for GPUs of compute capability {0} and this one has {1}; on this machine, " + _AGAIN,
    ),
    (
        r"key '?(?:builder_config|build_config|pretrained_config)'? not found|"
        r"KeyError: '(?:builder_config|build_config|pretrained_config|version)'|"
        r"Tensor names in engine are not the same",
        "the engine's config.json is of another TensorRT-LLM: " + _AGAIN,
    ),
    (
        r"Please use 'from tensorrt_llm\._tensorrt_engine import LLM'|No module named 'tensorrt_llm\._tensorrt_engine'",
        "this TensorRT-LLM runs no compiled engines (they went after 1.2): llmrun engines install trtllm --version "
        "1.2.1, or give the Hugging Face folder",
    ),
    (
        r"tp_size \d+ is not consistent with the (?:engine|checkpoint)'s|mpiSize == tp \* pp|MPI size \d+ != TP size|"
        r"Engine world size \(.*\) != Runtime world size|MPI world ?[sS]ize is expected|mapping\.world_size",
        "the engine was built for another number of ranks than were started; leave --tensor-parallel-size out",
    ),
    (
        r"libnvinfer\.so[.\d]*: cannot open|libpython3[.\d]*\.so[.\d]*: cannot open|libmpi\.so[.\d]*: cannot open",
        "a library of TensorRT-LLM is missing: it needs TensorRT, OpenMPI (apt-get install libopenmpi-dev) and a "
        "Python built with a shared library",
    ),
)
