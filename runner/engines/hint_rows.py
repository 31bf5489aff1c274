"""What the log of a failed engine says, and the next step: one table for all engines, particular rows first.

A row is (pattern, advice); the advice may use the pattern's groups as {0}, {1}. Sources of the lines: vLLM 0.32
(v1/core/kv_cache_utils.py, v1/worker/utils.py, platforms/cuda.py, models/registry.py), SGLang 0.5 (srt/mem_cache,
sgl_kernel/load_utils.py), TensorRT-LLM (TensorRT's runtime), mistral.rs (gguf/mod.rs), llama.cpp, PyTorch,
transformers. What only one engine says may stand in its own folder (EngineEntry.hints).
"""

from __future__ import annotations

Row = tuple[str, str]

NOT_BUILT_FOR_THIS_CPU = "the library was built for another CPU; build it here with `llmrun engines install`"

_GPU = (
    (
        r"NVIDIA driver on your system is too old|driver version is insufficient|unsupported display driver|"
        r"PTX was compiled with an unsupported toolchain|forward compatibility was attempted on non supported HW",
        "the NVIDIA driver is too old for the CUDA of this engine: update the driver (`nvidia-smi` tells the CUDA "
        "that it knows), or install an older version of the engine (--version)",
    ),
    (
        r"no kernel image is available|Could not load any common_ops library|"
        r"GPUs? with compute capability (?:of )?at least|not compatible with the current PyTorch installation",
        "this engine's kernels were not built for this GPU: another version of the engine may have them (--version); "
        "for bfloat16 on a GPU before Ampere add --dtype float16",
    ),
    (
        r"Failed to infer device type|Found no NVIDIA driver|no CUDA-capable device|No CUDA GPUs are available|"
        r"Torch not compiled with CUDA enabled|No accelerator \(CUDA|CUDA_ERROR_NO_DEVICE|libcuda\.so\.1: cannot open",
        "there is no usable GPU here; check `nvidia-smi`, or take the CPU build (`llmrun engines install ENGINE "
        "--cpu`) or out=native or out=llamacpp",
    ),
    (
        r"World size \((\d+)\) is larger than the number of available GPUs|larger than the number of available GPUs|"
        r"invalid device ordinal",
        "more GPUs are asked for than are here; lower --tensor-parallel-size or --base-gpu-id",
    ),
    (
        r"attention heads \((\d+)\) must be divisible by tensor parallel size|must be divisible by (?:tp|tensor)",
        "the model's heads cannot be divided among so many GPUs; take a --tensor-parallel-size that divides them",
    ),
    (
        r"NCCL error|ncclSystemError|ncclUnhandledCudaError",
        "the GPUs cannot reach each other; see the log with NCCL_DEBUG=INFO, and give a container more shared memory",
    ),
)

_MEMORY = (
    (
        r"is less than desired GPU memory utilization",
        "other programs use the GPU's memory; end them or lower --gpu-memory-utilization",
    ),
    (
        r"estimated maximum model length is (\d+)",
        "the context does not fit into memory: --context-length {0} does",
    ),
    (
        r"larger than the available KV cache|maximum number of tokens that can be stored in KV cache",
        "the context does not fit into memory: take a shorter --context-length",
    ),
    (
        r"VLLM_CPU_KVCACHE_SPACE",
        "the KV cache does not fit into memory: set VLLM_CPU_KVCACHE_SPACE to fewer GiB, or close other programs",
    ),
    (
        r"No available memory for the cache blocks|Not enough memory\. Please try to increase --mem-fraction-static",
        "the weights leave no room for a KV cache: raise --gpu-memory-utilization, or take a smaller model or a "
        "stronger quantization",
    ),
    (
        r"out of memory|cannot allocate|can't allocate|bad_alloc|MemoryError|OutOfMemory|failed to allocate",
        "there is not enough memory: take a smaller model, a stronger quantization, a shorter --context-length or "
        "fewer requests at once (--parallel)",
    ),
)

_MODEL = (
    (
        r"max_model_len \(\d+\) is greater than the derived max_model_len \(\w+=(\d+)",
        "the model was made for {0} tokens: take a --context-length of at most {0}, or leave it out",
    ),
    (
        r"gated repo|GatedRepoError|Access to model .* is restricted|awaiting a review from the repo authors",
        "the model is gated: accept its terms on its page on the Hub, then set HF_TOKEN",
    ),
    (
        r"LocalEntryNotFoundError|outgoing traffic has been disabled|couldn't connect to|"
        r"Cannot send a request .*offline",
        "the engine wants a file from the Hub that is not here; download the whole model first: llmrun pull ORG/NAME",
    ),
    (
        r"execute the configuration file in that repo|contains custom code which must be executed|"
        r"trust_remote_code=True",
        'the model brings its own code; if you trust it, say {{"trust_remote_code": true}} in --extra-engine-args FILE',
    ),
    (
        r"Model architectures? \[?'?([\w', ]+?)'?\]? (?:is|are) not supported|has no (?:SGLang|vLLM) implementation",
        "this version of the engine does not know the model's architecture: take a newer one (`llmrun engines install "
        "ENGINE --version`), or another engine (out=native, out=llamacpp with a GGUF file)",
    ),
    (
        r"model type `?([\w.-]+)`? but Transformers does not recognize|unknown model architecture: '([\w.-]+)'|"
        r"Unknown GGUF architecture|Unsupported (?:Hugging Face|architecture)",
        "this version of the engine does not know the model's architecture: take a newer one (`llmrun engines install "
        "ENGINE --version`), or another engine",
    ),
    (
        r"head[_ ]size(?: \d+)?(?: is)? not (?:supported|in)|head_size not supported|Unsupported head_?(?:size|dim)|"
        r"No valid attention backend",
        "no attention kernel of this engine takes the model's head size, number format or GPU: try --dtype, "
        "--kv-cache-dtype auto, or out=native",
    ),
    (
        r"Unknown quantization method|quantization method .* is not supported|"
        r"Quantization .* not (?:currently )?supported",
        "the engine does not know this quantization here: leave --quantize out, or take another copy of the model",
    ),
    (
        r"Cannot find any model weights|does not appear to have a file named|no file named .*safetensors|"
        r"Error while deserializing header|MetadataIncompleteBuffer|SafetensorError",
        "the model's files are not complete; download it again: llmrun pull ORG/NAME",
    ),
)

_TENSORRT = (
    (
        r"Version tag does not match|Serialized Engine Version|incompatible with this version of TensorRT",
        "the engine files were built by another version of TensorRT-LLM: build them again with the one installed "
        "(llmrun build-engine), or install the version in their config.json",
    ),
    (
        r"generated on an incompatible device, expecting compute ([\d.]+) got compute ([\d.]+)",
        "the engine files were built for another kind of GPU (compute {0}, this one is {1}): build them here "
        "(llmrun build-engine)",
    ),
)

_INSTALLATION = (
    (
        r"operator torchvision::nms does not exist",
        "torchvision is of another build than torch; install the engine again with `llmrun engines install`",
    ),
    (
        r"undefined symbol: \w*(?:c10|torch|at)\d?\w*|DLL load failed .*torch",
        "the engine was built for another version of torch than its environment has: install it again with "
        "`llmrun engines install`, and nothing else into its environment",
    ),
    (
        r"libmpi[\w.]*: cannot open shared object file",
        "TensorRT-LLM needs MPI: install it (Debian, Ubuntu: apt install libopenmpi-dev)",
    ),
    (
        r"lib(?:cudart|nvrtc|cublas\w*|cudnn|nccl)\.so\.(\d+): cannot open shared object file",
        "a library of CUDA {0} is missing: the engine was built for another CUDA than its environment has; install it "
        "again with `llmrun engines install`",
    ),
    (
        r"cannot open shared object file|Library not loaded|undefined symbol|GLIBC\w*_[\d.]+' not found",
        "a shared library is missing or too old; install the engine again with `llmrun engines install`",
    ),
    (
        r"Could not find nvcc|nvcc: not found|CUDA_HOME environment variable is not set",
        "this engine compiles kernels and needs nvcc: install the CUDA toolkit, or set CUDA_HOME",
    ),
    (r"Ninja is required", "this engine compiles kernels and needs ninja: install it into the engine's environment"),
    (
        r"fatal error: Python\.h: No such file",
        "this engine compiles kernels and needs Python's headers (Debian, Ubuntu: apt install python3-dev)",
    ),
    (r"No module named '?([\w.]+)", "a Python package is missing: install {0} into the environment of this engine"),
)

_SYSTEM = (
    (r"Address already in use|EADDRINUSE", "another process has this port; stop it or choose another port"),
    (r"No space left on device", "the disk is full; free some space"),
    (r"Too many open files", "raise the limit of open files (`ulimit -n 65536`)"),
    (r"Permission denied|PermissionError", "a file may not be read or written; check its owner and mode"),
    (r"No such file or directory|FileNotFoundError", "a file is not there; check the path"),
    (r"illegal instruction", NOT_BUILT_FOR_THIS_CPU),
)

ROWS: tuple[Row, ...] = (*_GPU, *_MEMORY, *_MODEL, *_TENSORRT, *_INSTALLATION, *_SYSTEM)
