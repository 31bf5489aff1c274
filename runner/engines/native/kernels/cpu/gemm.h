// C = A * B^T for weights packed once. Float32 accumulation always.
//
// Packed weight, of a [n, k] matrix: panels of NR columns (rows of the matrix), zero-padded.
//     float32   [panels][k][NR]                  one FMA a vector, A broadcast
//     bfloat16  [panels][kpad / 2][NR][2]        pairs of k side by side: both vdpbf16ps and AMX (VNNI) want them so
// A gated weight [2 i, k] (gate rows, then up rows) has W gate and W up columns in each panel, so that act(gate) * up is
// finished where the panel is computed.
//
// A: rows of the same type as the weight, `lda` elements apart; bfloat16 is zero-padded to kpad, and readable up to a
// multiple of 32 rows (AMX multiplies whole tiles).
#pragma once
#include <algorithm>

#include "pool.h"
#include "simd.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#define LLMRUN_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace llmrun {

constexpr int K_ALIGN = 32;   // of bfloat16 rows, a tile's row
constexpr int TILE_ROWS = 32; // rows of A that the AMX loop takes at once
#if defined(__AVX512F__)
constexpr int MR = 12;
#elif defined(__aarch64__)
constexpr int MR = 6;
#else
constexpr int MR = 4;
#endif
constexpr int BLOCK_M = 96;  // a multiple of MR and TILE_ROWS
constexpr int64_t BLOCK_BYTES = 1 << 20;  // of A that stay in the L2 cache while panels pass by

constexpr int AHEAD = 4096;  // bytes of a weight asked for before they are needed

inline int round_up(int x, int to) { return (x + to - 1) / to * to; }

struct Weight {
    const void* data;
    const float* bias;  // [n] or null
    int32_t n, k, type, is_gated;
    int panels() const { return (n + NR - 1) / NR; }
    int kpad() const { return type == BF16 ? round_up(k, K_ALIGN) : k; }
    int64_t panel_bytes() const { return (int64_t)kpad() * NR * type_size(type); }
    const char* panel(int p) const { return (const char*)data + p * panel_bytes(); }
    int out() const { return is_gated ? n / 2 : n; }
};

// Row of the matrix behind column c of panel p, or -1 for padding.
inline int panel_row(int p, int c, int n, bool is_gated) {
    if (!is_gated) return p * NR + c < n ? p * NR + c : -1;
    const int row = p * W + c % W;
    return row < n / 2 ? row + (c >= W ? n / 2 : 0) : -1;
}
inline int num_panels(int n, bool is_gated) {
    return is_gated ? (n / 2 + W - 1) / W : (n + NR - 1) / NR;
}

// Packs rows of a panel from [n, k] of `type_from` (float32, bfloat16 or float16), `stride` elements apart.
inline void pack_panel(const void* from, int type_from, int64_t stride, int p, const Weight& w, void* to) {
    const int k = w.k, kpad = w.kpad();
    std::vector<float> row(kpad);
    for (int c = 0; c < NR; c++) {
        const int r = panel_row(p, c, w.n, w.is_gated);
        std::fill(row.begin(), row.end(), 0.0f);
        if (r >= 0) read_row((const char*)from + r * stride * type_size(type_from), type_from, 1.0f, row.data(), k);
        if (w.type == F32)
            for (int i = 0; i < k; i++) ((float*)to)[(int64_t)i * NR + c] = row[i];
        else
            for (int i = 0; i < kpad; i++) ((bf16*)to)[((int64_t)(i / 2) * NR + c) * 2 + i % 2] = to_bf16(row[i]);
    }
}

// One row of a packed, not gated weight, as float (the embedding where it is tied to the head).
inline void unpack_row(const Weight& w, int r, float* to) {
    const char* panel = w.panel(r / NR);
    const int c = r % NR;
    for (int i = 0; i < w.k; i++)
        to[i] = w.type == F32 ? ((const float*)panel)[(int64_t)i * NR + c]
                              : to_float(((const bf16*)panel)[((int64_t)(i / 2) * NR + c) * 2 + i % 2]);
}

// --- float32: R rows of A by one panel (rows of B `ldb` apart) -----------------------------------------------------------
template <int R, bool ADD>
inline void f32_kernel(const float* a, int64_t lda, const float* b, int64_t ldb, int k, float* c, int64_t ldc) {
    constexpr int U = R == 1 ? 4 : R <= 3 ? 2 : 1;  // chains of their own hide the latency of FMA
    vf acc[U][R][2] = {};
    int i = 0;
    for (; i + U <= k; i += U)
        for (int u = 0; u < U; u++) {
            const vf b0 = load(b + (i + u) * ldb), b1 = load(b + (i + u) * ldb + W);
            if constexpr (R > 1) {  // with one row the processor's own prefetcher keeps up
                __builtin_prefetch((const char*)(b + (i + u) * ldb) + AHEAD);
                __builtin_prefetch((const char*)(b + (i + u) * ldb + W) + AHEAD);
            }
            for (int r = 0; r < R; r++) {
                const vf x = splat(a[r * lda + i + u]);
                acc[u][r][0] += x * b0;
                acc[u][r][1] += x * b1;
            }
        }
    for (; i < k; i++) {
        const vf b0 = load(b + i * ldb), b1 = load(b + i * ldb + W);
        for (int r = 0; r < R; r++) {
            const vf x = splat(a[r * lda + i]);
            acc[0][r][0] += x * b0;
            acc[0][r][1] += x * b1;
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) {
            vf s = acc[0][r][j];
            for (int u = 1; u < U; u++) s += acc[u][r][j];
            float* out = c + r * ldc + j * W;
            store(out, ADD ? load(out) + s : s);
        }
}

template <bool ADD, int R = MR>
inline void f32_panel(int rows, const float* a, int64_t lda, const float* b, int64_t ldb, int k, float* c, int64_t ldc) {
    if constexpr (R > 1)
        if (rows < R) return f32_panel<ADD, R - 1>(rows, a, lda, b, ldb, k, c, ldc);
    f32_kernel<R, ADD>(a, lda, b, ldb, k, c, ldc);
    if (rows > R) f32_panel<ADD, R>(rows - R, a + R * lda, lda, b, ldb, k, c + R * ldc, ldc);
}

// --- bfloat16 without tiles ----------------------------------------------------------------------------------------------
inline vf dot_pairs(vf acc, uint32_t a, const bf16* b) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(a), (__m512bh)load<__m512i>(b));
#else
    const vu pairs = load<vu>(b);
    const vu even = pairs << 16, odd = pairs & 0xffff0000u;
    vf e, o;
    std::memcpy(&e, &even, sizeof e);
    std::memcpy(&o, &odd, sizeof o);
    return acc + e * splat(to_float((bf16)a)) + o * splat(to_float((bf16)(a >> 16)));
#endif
}

template <int R>
inline void bf16_kernel(const bf16* a, int64_t lda, const bf16* b, int kpad, float* c, int64_t ldc) {
    constexpr int U = R == 1 ? 4 : R <= 4 ? 2 : 1;
    vf acc[U][R][2] = {};
    for (int i = 0; i < kpad / 2; i += U)
        for (int u = 0; u < U; u++) {
            __builtin_prefetch((const char*)(b + (int64_t)(i + u) * NR * 2) + AHEAD);
            __builtin_prefetch((const char*)(b + (int64_t)(i + u) * NR * 2 + NR) + AHEAD);
            for (int r = 0; r < R; r++) {
                const uint32_t x = load<uint32_t>(a + r * lda + 2 * (i + u));
                acc[u][r][0] = dot_pairs(acc[u][r][0], x, b + (int64_t)(i + u) * NR * 2);
                acc[u][r][1] = dot_pairs(acc[u][r][1], x, b + (int64_t)(i + u) * NR * 2 + NR);
            }
        }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) {
            vf s = acc[0][r][j];
            for (int u = 1; u < U; u++) s += acc[u][r][j];
            store(c + r * ldc + j * W, s);
        }
}
constexpr int BF16_MR = MR > 8 ? 8 : MR;
template <int R = BF16_MR>
inline void bf16_panel(int rows, const bf16* a, int64_t lda, const bf16* b, int kpad, float* c, int64_t ldc) {
    if constexpr (R > 1)
        if (rows < R) return bf16_panel<R - 1>(rows, a, lda, b, kpad, c, ldc);
    bf16_kernel<R>(a, lda, b, kpad, c, ldc);
    if (rows > R) bf16_panel<R>(rows - R, a + R * lda, lda, b, kpad, c + R * ldc, ldc);
}

// --- AMX -----------------------------------------------------------------------------------------------------------------
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

// Calls finish(row, rows, panel, c [rows][NR]) for every part of the product, from any thread.
template <class Finish>
void gemm(Pool& pool, const Weight& w, int m, const void* a, int64_t lda, const Finish& finish) {
    const int panels = num_panels(w.n, w.is_gated);
    const int64_t fitting = BLOCK_BYTES / (lda * type_size(w.type));
    const int block_m = std::max<int64_t>(1, fitting / BLOCK_M) * BLOCK_M;
    const int blocks = (m + block_m - 1) / block_m;
    const int per_block = std::min(panels, std::max(1, 4 * pool.active() / blocks));
    const int kpad = w.kpad();
    const bool is_tiled = has_tiles() && m > 4;
    pool.run(blocks * per_block, [&](int chunk, int) {
        const int block = chunk / per_block, part = chunk % per_block;
        const int first = (int64_t)panels * part / per_block, last = (int64_t)panels * (part + 1) / per_block;
        const int begin = block * block_m, end = std::min(m, begin + block_m);
        alignas(64) float c[TILE_ROWS * NR];
#if defined(LLMRUN_AMX)
        if (w.type == BF16 && is_tiled) configure_tiles();
#endif
        constexpr int F32_ROWS = TILE_ROWS / MR * MR;
        for (int p = first; p < last; p++)
            for (int row = begin; row < end;) {
                const int rows = std::min(end - row, w.type == F32 ? F32_ROWS : TILE_ROWS);
                if (w.type == F32) {
                    f32_panel<false>(rows, (const float*)a + row * lda, lda, (const float*)w.panel(p), NR, kpad, c, NR);
                } else {
                    const bf16* rows_of_a = (const bf16*)a + row * lda;
#if defined(LLMRUN_AMX)
                    if (is_tiled && row == begin)
                        amx_panel<true>(rows, rows_of_a, lda, (const bf16*)w.panel(p), kpad, c);
                    else if (is_tiled)
                        amx_panel<false>(rows, rows_of_a, lda, (const bf16*)w.panel(p), kpad, c);
                    else
#endif
                        bf16_panel(rows, rows_of_a, lda, (const bf16*)w.panel(p), kpad, c, NR);
                }
                finish(row, rows, p, c);
                row += rows;
            }
    });
}

}  // namespace llmrun
