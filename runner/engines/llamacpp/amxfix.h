/* Included in front of every C++ file (-include).
 *
 * In gcc up to 12, _tile_loadconfig() tells the compiler that it reads 8 bytes; it reads 64. At -O2 the stores to the
 * rest of the tile configuration are dropped, and ggml's AMX kernels die (SIGSEGV or SIGILL) at the first quantised
 * matrix. This gives the instruction its true operand.
 *
 * Where the compiler has AVX512-FP16, ggml's float16 loops take 128 numbers at a time, and what is left goes one by one
 * through a table: with heads of 64 (or 96) that is all (or a third) of attention's sum over V. Without the macro they
 * take 64 at a time, as on every other AVX512 processor: one chat 4.2 -> 3.7 ms a token, eight 18.4 -> 15.8 ms a step. */
#pragma once
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
struct llmrun_tile_config {
    unsigned char bytes[64];
};
static inline __attribute__((always_inline)) void llmrun_load_tile_config(const void * config) {
    __asm__ __volatile__("ldtilecfg\t%0" : : "m"(*(const struct llmrun_tile_config *) config) : "memory");
}
#define _tile_loadconfig(config) llmrun_load_tile_config(config)
#endif
#undef __AVX512FP16__
