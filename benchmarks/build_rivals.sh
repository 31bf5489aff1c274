#!/usr/bin/env bash
# Build the rivals from llama-cpp-python's sdist into FOLDER: llama-server and llama-bench, and a Python that can run
# `-m llama_cpp.server`, all of the same source and flags. Prints the variables that the benchmarks read.
#
#   benchmarks/build_rivals.sh FOLDER [VERSION]
set -euo pipefail

folder=${1:?usage: benchmarks/build_rivals.sh FOLDER [VERSION]}
version=${2:-0.3.36}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
python=${PYTHON:-python3}

# gcc 12 miscompiles ggml's AMX code (an asm operand that is too small drops the stores before it): pre-include the right
# intrinsic, as `llmrun engines install llamacpp` does. Compilers and processors without AMX are not affected. It also
# hides AVX512-FP16, with which ggml's attention over heads of 64 leaves SIMD: rivals gain what we gain.
cat > "$folder/amxfix.h" <<'HEADER'
#pragma once
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
static inline __attribute__((always_inline)) void load_tile_config(const void *config) {
    __asm__ __volatile__("ldtilecfg\t%0" ::"m"(*(const char(*)[64])config) : "memory");
}
#define _tile_loadconfig(config) load_tile_config(config)
#endif
#undef __AVX512FP16__
HEADER

"$python" -m venv "$folder/venv"
pip="$folder/venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet cmake ninja
$pip download --quiet --no-deps --no-binary :all: --dest "$folder" "llama-cpp-python==$version"
tar -xzf "$folder"/llama_cpp_python-"$version".tar.gz -C "$folder"
source="$folder/llama_cpp_python-$version/vendor/llama.cpp"

flags=(-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_CCACHE=OFF "-DCMAKE_CXX_FLAGS=-include$folder/amxfix.h")
"$folder/venv/bin/cmake" -S "$source" -B "$folder/build" -G Ninja "${flags[@]}" \
    -DCMAKE_MAKE_PROGRAM="$folder/venv/bin/ninja" -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
"$folder/venv/bin/ninja" -C "$folder/build" llama-server llama-bench

CMAKE_ARGS="-DLLAVA_BUILD=OFF ${flags[*]}" $pip install --quiet "$folder"/llama_cpp_python-"$version".tar.gz \
    fastapi uvicorn sse-starlette pydantic-settings starlette-context

echo "export LLAMA_SERVER=$folder/build/bin/llama-server"
echo "export LLAMA_BENCH=$folder/build/bin/llama-bench"
echo "export LLAMA_CPP_PYTHON=$folder/venv/bin/python"
