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
