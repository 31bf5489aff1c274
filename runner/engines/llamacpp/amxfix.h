/* Included in front of every C++ file (-include).
 *
 * In gcc up to 12, _tile_loadconfig() tells the compiler that it reads 8 bytes; it reads 64. At -O2 the stores to the
 * rest of the tile configuration are dropped, and ggml's AMX kernels die (SIGSEGV or SIGILL) at the first quantised
 * matrix. This gives the instruction its true operand. */
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
