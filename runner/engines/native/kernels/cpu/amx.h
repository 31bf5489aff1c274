// AMX: tiles of 16 rows by 64 bytes, bfloat16 in, float32 out. Owns the asking for tile registers and their configuration.
#pragma once
#include "simd.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#define LLMRUN_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace llmrun {

#if defined(LLMRUN_AMX)
inline bool ask_for_tiles() {  // the kernel gives a process tile registers on request (Documentation/arch/x86/xstate.rst)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
}
inline bool has_tiles() {
    static const bool granted = ask_for_tiles();
    return granted;
}
inline void configure_tiles() {
    struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static const Config config;
    // Not _tile_loadconfig: gcc <= 12 believes that it reads 8 bytes, and drops the stores to the others.
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
// Up to 32 rows by one panel; c is [32][NR].
template <bool PREFETCH>
inline void amx_panel(int rows, const bf16* a, int64_t lda, const bf16* b, int kpad, float* c) {
    const int64_t sa = lda * 2, sb = NR * 4;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < kpad; i += 32) {
        const char* tile = (const char*)(b + (int64_t)i * NR);
        if constexpr (PREFETCH)
            for (int line = 0; line < 2048; line += 64) _mm_prefetch(tile + AHEAD + line, _MM_HINT_T0);
        _tile_loadd(4, a + i, sa);
        _tile_loadd(6, tile, sb);
        _tile_loadd(7, tile + 64, sb);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (rows > 16) {
            _tile_loadd(5, a + 16 * lda + i, sa);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, NR * 4);
    _tile_stored(1, c + 16, NR * 4);
    if (rows > 16) {
        _tile_stored(2, c + 16 * NR, NR * 4);
        _tile_stored(3, c + 16 * NR + 16, NR * 4);
    }
}
#else
inline bool has_tiles() { return false; }
#endif

}  // namespace llmrun
