// C = A * B^T for weights packed once. Float32 accumulation always.
//
// Packed weight, of a [n, k] matrix: panels of NR columns (rows of the matrix), zero-padded.
//     float32   [panels][k][NR]                  one FMA a vector, A broadcast
//     bfloat16  [panels][kpad / 2][NR][2]        pairs of k side by side: both vdpbf16ps and AMX (VNNI) want them so
// A quantised weight: [panels][k][NR] in 8 bits, or [panels][k][W] bytes of two 4-bit columns c and W + c; each panel is
// made dense in one of the layouts above when its turn comes. w = q * scale + offset, both by group of rows of a panel.
// A gated weight [2 i, k] (gate rows, then up rows) has W gate and W up columns in each panel, so that act(gate) * up is
// finished where the panel is computed.
//
// A: rows of the same type as the weight, `lda` elements apart; bfloat16 is zero-padded to kpad, and readable up to a
// multiple of 32 rows (AMX multiplies whole tiles).
#pragma once
#include <algorithm>
#include <type_traits>

#include "amx.h"
#include "pool.h"
#include "simd.h"

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
constexpr int KSTEP = 4;     // values of k between two looks ahead
constexpr int64_t BLOCK_BYTES = 1 << 20;  // of A that stay in the L2 cache while panels pass by

inline int round_up(int x, int to) { return (x + to - 1) / to * to; }

struct Weight {
    const void* data;
    const float* bias;  // [n] or null
    int32_t n, k, type, is_gated;  // type: of A, and of a panel that is multiplied
    const float* scales;           // [panels][groups][scale, offset][NR] of a quantised weight
    int32_t bits, group;           // 0: not quantised
    int panels() const { return (n + NR - 1) / NR; }
    int kpad() const { return type == BF16 ? round_up(k, K_ALIGN) : k; }
    int groups() const { return (k + group - 1) / group; }
    int64_t dense_bytes() const { return (int64_t)kpad() * NR * type_size(type); }
    int64_t panel_bytes() const { return bits ? (int64_t)round_up(k, 2) * NR * bits / 8 : dense_bytes(); }
    const float* panel_scales(int p, int g) const { return scales + ((int64_t)p * groups() + g) * 2 * NR; }
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

// Packs rows of a quantised panel: q int8 [n, k], or uint8 [n, k / 2] with the even column in the low bits; scale
// [n, groups]; zero the same or null.
inline void pack_quantized(const uint8_t* q, const float* scale, const float* zero, int p, const Weight& w) {
    uint8_t* to = (uint8_t*)w.panel(p);
    const int groups = w.groups();
    std::memset(to, 0, w.panel_bytes());
    for (int c = 0; c < NR; c++) {
        const int64_t r = panel_row(p, c, w.n, w.is_gated);
        for (int g = 0; g < groups; g++) {
            float* factors = (float*)w.panel_scales(p, g) + c;
            factors[0] = r < 0 ? 0.0f : scale[r * groups + g];
            factors[NR] = r < 0 || !zero ? 0.0f : -factors[0] * zero[r * groups + g];
        }
        for (int i = 0; r >= 0 && i < w.k; i++)
            if (w.bits == 8)
                to[(int64_t)i * NR + c] = q[r * w.k + i];
            else
                to[(int64_t)i * W + c % W] |= (q[(r * w.k + i) / 2] >> i % 2 * 4 & 15) << (c < W ? 0 : 4);
    }
}

// W bytes as integers. (What GCC makes of __builtin_convertvector here takes five times as long.)
template <class T>
inline vi widen(const uint8_t* p) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
    return (vi)(std::is_signed_v<T> ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)p);
    return (vi)(std::is_signed_v<T> ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
#else
    typedef T codes __attribute__((vector_size(W)));
    return __builtin_convertvector(load<codes>(p), vi);
#endif
}

// NR columns of row i of a quantised panel, as float but for scale and offset.
inline void read_codes(const Weight& w, const uint8_t* panel, int i, vf out[2]) {
    __builtin_prefetch(panel + (int64_t)i * NR * w.bits / 8 + AHEAD);
    if (w.bits == 8) {
        out[0] = __builtin_convertvector(widen<int8_t>(panel + (int64_t)i * NR), vf);
        out[1] = __builtin_convertvector(widen<int8_t>(panel + (int64_t)i * NR + W), vf);
    } else {
        const vi both = widen<uint8_t>(panel + (int64_t)i * W);
        out[0] = __builtin_convertvector(both & 15, vf);
        out[1] = __builtin_convertvector(both >> 4, vf);
    }
}

inline vu rounded_to_bf16(vf x) {  // in the upper half
    vu u;
    std::memcpy(&u, &x, sizeof u);
    return u + 0x7fff + ((u >> 16) & 1);
}

// Makes panel p dense, in the layout of w.type.
inline void expand_panel(const Weight& w, int p, char* to) {
    const uint8_t* panel = (const uint8_t*)w.panel(p);
    if (w.type == BF16 && w.kpad() > w.k)  // A is zero there: anything finite will do
        std::memset(to + (int64_t)w.k / 2 * NR * 4, 0, (int64_t)(w.kpad() - w.k / 2 * 2) * NR * 2);
    for (int g = 0; g < w.groups(); g++) {
        const float* f = w.panel_scales(p, g);
        const vf s[2] = {load(f), load(f + W)}, o[2] = {load(f + NR), load(f + NR + W)};
        const int end = std::min(w.k, (g + 1) * w.group);
        vf even[2], odd[2] = {};
        if (w.type == F32)
            for (int i = g * w.group; i < end; i++) {
                read_codes(w, panel, i, even);
                for (int j = 0; j < 2; j++) store((float*)to + (int64_t)i * NR + j * W, even[j] * s[j] + o[j]);
            }
        else
            for (int i = g * w.group; i < end; i += 2) {
                read_codes(w, panel, i, even);
                read_codes(w, panel, i + 1, odd);
                for (int j = 0; j < 2; j++)
                    store((uint32_t*)to + (int64_t)i / 2 * NR + j * W,
                          rounded_to_bf16(even[j] * s[j] + o[j]) >> 16 | (rounded_to_bf16(odd[j] * s[j] + o[j]) & 0xffff0000u));
            }
    }
}

// R rows of A by a quantised panel that stays as it is: for few rows that is less work than to make it dense.
constexpr int CODED_ROWS = 4;
template <int R, class T>
inline void quantized_kernel(const Weight& w, int p, const T* a, int64_t lda, float* c) {
    constexpr int U = R == 1 ? 4 : R == 2 ? 2 : 1;
    const uint8_t* panel = (const uint8_t*)w.panel(p);
    vf total[R][2] = {};
    for (int g = 0; g < w.groups(); g++) {
        vf acc[U][R][2] = {}, codes[2];
        float sums[R] = {};
        const int end = std::min(w.k, (g + 1) * w.group);
        const auto add = [&](int i, int u) {
            read_codes(w, panel, i, codes);
            for (int r = 0; r < R; r++) {
                float x;
                if constexpr (sizeof(T) == 4) x = a[r * lda + i]; else x = to_float(a[r * lda + i]);
                acc[u][r][0] += splat(x) * codes[0];
                acc[u][r][1] += splat(x) * codes[1];
                sums[r] += x;
            }
        };
        int i = g * w.group;
        for (; i + U <= end; i += U)
            for (int u = 0; u < U; u++) add(i + u, u);
        for (; i < end; i++) add(i, 0);
        const float* f = w.panel_scales(p, g);
        for (int r = 0; r < R; r++)
            for (int j = 0; j < 2; j++) {
                vf s = acc[0][r][j];
                for (int u = 1; u < U; u++) s += acc[u][r][j];
                total[r][j] += s * load(f + j * W) + splat(sums[r]) * load(f + NR + j * W);
            }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) store(c + r * NR + j * W, total[r][j]);
}
template <class T, int R = CODED_ROWS>
inline void quantized_panel(int rows, const Weight& w, int p, const T* a, int64_t lda, float* c) {
    if constexpr (R > 1)
        if (rows < R) return quantized_panel<T, R - 1>(rows, w, p, a, lda, c);
    quantized_kernel<R>(w, p, a, lda, c);
}

inline float quantized_at(const Weight& w, int p, int c, int i) {
    const uint8_t* panel = (const uint8_t*)w.panel(p);
    const float* factors = w.panel_scales(p, i / w.group) + c;
    const int q = w.bits == 8 ? (int8_t)panel[(int64_t)i * NR + c] : panel[(int64_t)i * W + c % W] >> (c < W ? 0 : 4) & 15;
    return q * factors[0] + factors[NR];
}

// One row of a packed, not gated weight, as float (the embedding where it is tied to the head).
inline void unpack_row(const Weight& w, int r, float* to) {
    const char* panel = w.panel(r / NR);
    const int c = r % NR;
    if (w.bits) {
        for (int i = 0; i < w.k; i++) to[i] = quantized_at(w, r / NR, c, i);
        return;
    }
    for (int i = 0; i < w.k; i++)
        to[i] = w.type == F32 ? ((const float*)panel)[(int64_t)i * NR + c]
                              : to_float(((const bf16*)panel)[((int64_t)(i / 2) * NR + c) * 2 + i % 2]);
}

// --- float32: R rows of A by one panel (rows of B `ldb` apart) -----------------------------------------------------------

// What is asked of memory while a panel is multiplied, so that memory and arithmetic go on together.
struct AskNothing {  // it is in the cache, or there is one row, with which the processor's own prefetcher keeps up
    static constexpr bool IS_OF_THIS_PANEL = false;
    template <int R>
    void ask() {}
};
struct AskThisPanel : AskNothing {
    static constexpr bool IS_OF_THIS_PANEL = true;
};
struct AskNextPanel {  // a few lines at a time: the rows that pass by the present one share them out
    static constexpr bool IS_OF_THIS_PANEL = false;
    const char *at, *end;
    int rows;
    template <int R>
    void ask() {  // R rows by KSTEP values of k are next
        const char* to = std::min(end, at + (2 * KSTEP * R + rows - 1) / rows * 64);
        for (; at < to; at += 64) __builtin_prefetch(at);
    }
};

template <int R, bool ADD, class Asks>
inline void f32_kernel(const float* a, int64_t lda, const float* b, int64_t ldb, int k, float* c, int64_t ldc, Asks& asks) {
    constexpr int U = R == 1 ? 4 : R <= 3 ? 2 : 1;  // chains of their own hide the latency of FMA
    vf acc[U][R][2] = {};
    const auto add = [&](int i, int u) {
        const vf b0 = load(b + i * ldb), b1 = load(b + i * ldb + W);
        if constexpr (Asks::IS_OF_THIS_PANEL && R > 1)
            for (int j = 0; j < NR; j += W) __builtin_prefetch((const char*)(b + i * ldb + j) + AHEAD);
        for (int r = 0; r < R; r++) {
            const vf x = splat(a[r * lda + i]);
            acc[u][r][0] += x * b0;
            acc[u][r][1] += x * b1;
        }
    };
    int i = 0;
    for (; i + KSTEP <= k;) {
        asks.template ask<R>();
        for (const int end = i + KSTEP; i < end; i += U)
            for (int u = 0; u < U; u++) add(i + u, u);
    }
    for (; i < k; i++) add(i, 0);
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) {
            vf s = acc[0][r][j];
            for (int u = 1; u < U; u++) s += acc[u][r][j];
            float* out = c + r * ldc + j * W;
            store(out, ADD ? load(out) + s : s);
        }
}

template <bool ADD, class Asks, int R = MR>
inline void f32_panel(int rows, const float* a, int64_t lda, const float* b, int64_t ldb, int k, float* c, int64_t ldc,
                      Asks& asks) {
    if constexpr (R > 1)
        if (rows < R) return f32_panel<ADD, Asks, R - 1>(rows, a, lda, b, ldb, k, c, ldc, asks);
    f32_kernel<R, ADD>(a, lda, b, ldb, k, c, ldc, asks);
    if (rows > R) f32_panel<ADD, Asks, R>(rows - R, a + R * lda, lda, b, ldb, k, c + R * ldc, ldc, asks);
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

inline char* scratch(int64_t bytes) {  // of this thread, at a cache line
    static thread_local std::vector<char> memory;
    if ((int64_t)memory.size() < bytes + 64) memory.resize(bytes + 64);
    return memory.data() + -(uintptr_t)memory.data() % 64;
}

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
        char* dense = w.bits ? scratch(w.dense_bytes()) : nullptr;
        for (int p = first; p < last; p++) {
            if (w.bits && m <= CODED_ROWS) {
                if (w.type == F32) quantized_panel(m, w, p, (const float*)a, lda, c);
                else quantized_panel(m, w, p, (const bf16*)a, lda, c);
                finish(0, m, p, c);
                continue;
            }
            if (w.bits) expand_panel(w, p, dense);
            const char* panel = w.bits ? dense : w.panel(p);
            const bool asks_next = end - begin > MR && !w.bits && p + 1 < (pool.active() == 1 ? panels : last);
            AskNextPanel next{asks_next ? w.panel(p + 1) : nullptr, asks_next ? w.panel(p + 2) : nullptr, end - begin};
            AskThisPanel this_one;
            for (int row = begin; row < end;) {
                const int rows = std::min(end - row, w.type == F32 ? F32_ROWS : TILE_ROWS);
                if (w.type == F32) {
                    const float* rows_of_a = (const float*)a + row * lda;
                    if (asks_next) f32_panel<false>(rows, rows_of_a, lda, (const float*)panel, NR, kpad, c, NR, next);
                    else f32_panel<false>(rows, rows_of_a, lda, (const float*)panel, NR, kpad, c, NR, this_one);
                } else {
                    const bf16* rows_of_a = (const bf16*)a + row * lda;
#if defined(LLMRUN_AMX)
                    if (is_tiled && row == begin)
                        amx_panel<true>(rows, rows_of_a, lda, (const bf16*)panel, kpad, c);
                    else if (is_tiled)
                        amx_panel<false>(rows, rows_of_a, lda, (const bf16*)panel, kpad, c);
                    else
#endif
                        bf16_panel(rows, rows_of_a, lda, (const bf16*)panel, kpad, c, NR);
                }
                finish(row, rows, p, c);
                row += rows;
            }
        }
    });
}

}  // namespace llmrun
