// Vectors of W floats by GCC/Clang vector extensions (AVX-512: 16 lanes, everything else: 8), element types of weights and
// caches, exp. Owns no algorithm. Compiles on any CPU; AVX512_BF16 and AMX are used where -march=native has them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace llmrun {

#if defined(__AVX512F__)
constexpr int W = 16;
#else
constexpr int W = 8;
#endif
constexpr int NR = 2 * W;  // columns of a weight panel
constexpr int AHEAD = 4096;  // bytes of a weight asked for before they are needed

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t bf16;

enum Type { F32 = 0, BF16 = 1, F16 = 2, I8 = 3, FP8 = 4 };

inline int type_size(int type) { return type == F32 ? 4 : type <= F16 ? 2 : 1; }

template <class V = vf, class T>
inline V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class T>
inline void store(T* p, V v) {
    std::memcpy(p, &v, sizeof v);
}
inline vf splat(float x) { return x - vf{}; }  // x - 0, which compilers drop; x + 0 they must keep (for -0)

inline float sum(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s = 0;
    for (int i = 0; i < W; i++) s += v[i];
    return s;
#endif
}
// The sums of four vectors at once: 13 instructions instead of 40.
inline void sum4(const vf* v, float* to) {
#if defined(__AVX512F__)
    const __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
    const __m512d ab = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512d cd = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 s = _mm512_add_ps((__m512)_mm512_unpacklo_pd(ab, cd), (__m512)_mm512_unpackhi_pd(ab, cd));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(s), (__m256)_mm512_extractf64x4_pd((__m512d)s, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    for (int i = 0; i < 4; i++) to[i] = sum(v[i]);
#endif
}
inline vf max(vf a, vf b) { return a > b ? a : b; }
inline float max_of(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#endif
    float m = v[0];
    for (int i = 1; i < W; i++) m = v[i] > m ? v[i] : m;
    return m;
}

// The first of the largest of n values; a NaN counts as the largest. As numpy's argmax.
inline int argmax(const float* x, int n) {
    vf top = splat(-INFINITY);
    vi at = {}, is_nan = {};
    int i = 0, best = 0;
    for (; i + W <= n; i += W) {
        const vf v = load(x + i);
        const vi is_larger = v > top;
        top = is_larger ? v : top;
        at = is_larger ? i + vi{} : at;
        is_nan |= v != v;
    }
    float largest = -INFINITY;
    bool has_nan = false;
    for (int lane = 0; lane < W; lane++) {
        const int index = at[lane] + lane;
        has_nan |= is_nan[lane] != 0;
        if (top[lane] < largest || (top[lane] == largest && index > best)) continue;
        largest = top[lane];
        best = index;
    }
    for (; i < n; i++) {
        has_nan |= x[i] != x[i];
        if (x[i] <= largest) continue;
        largest = x[i];
        best = i;
    }
    for (i = 0; has_nan; i++)
        if (x[i] != x[i]) return i;
    return best;
}

// exp by 2^n * p(r), |r| <= ln2/2; about 1 ulp. Below -87 it is 0 (so that -inf gives exactly 0).
inline vf vexp(vf x) {
    const vf low = splat(-87.0f), high = splat(88.0f);
    const vi is_zero = x < low;
    const vi is_nan = x != x;
    vf y = x < low ? low : x;
    y = y > high ? high : y;
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    const vf n = (y * 1.44269504088896341f + magic) - magic;
    const vf r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const vi e = (__builtin_convertvector(n, vi) + 127) << 23;
    vf scale;
    std::memcpy(&scale, &e, sizeof e);
    p = is_zero ? vf{} : p * scale;
    return is_nan ? x : p;
}
inline vf vtanh(vf x) {
    const vf t = vexp((x < 0.0f ? x : -x) * 2.0f);  // exp(-2|x|)
    const vf y = (1.0f - t) / (1.0f + t);
    return x < 0.0f ? -y : y;
}

inline float to_float(bf16 h) {
    const uint32_t u = (uint32_t)h << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
inline bf16 to_bf16(float f) {  // nearest even; NaN stays NaN
    uint32_t u;
    std::memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
inline vf load_bf16(const bf16* p) {  // W values
    typedef uint16_t half_vector __attribute__((vector_size(W * 2)));
    const vu u = __builtin_convertvector(load<half_vector>(p), vu) << 16;
    vf f;
    std::memcpy(&f, &u, sizeof u);
    return f;
}
inline void store_bf16(bf16* p, vf x) {
    typedef uint16_t half_vector __attribute__((vector_size(W * 2)));
    vu u;
    std::memcpy(&u, &x, sizeof u);
    vu r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    r = (u & 0x7fffffff) > 0x7f800000 ? vu{} + 0x7fc0 : r;
    store(p, __builtin_convertvector(r, half_vector));
}

inline float half_to_float(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, body = h & 0x7fff;
    uint32_t u = body >= 0x7c00 ? (body << 13) | 0x7f800000 : (body << 13) + 0x38000000;
    float f;
    if (body < 0x0400) {
        f = body * 5.9604644775390625e-8f;
        std::memcpy(&u, &f, 4);
    }
    u |= sign;
    std::memcpy(&f, &u, 4);
    return f;
#endif
}
inline uint16_t float_to_half(float f) {
#if defined(__F16C__)
    return _cvtss_sh(f, 0);
#else
    _Float16 h = (_Float16)f;
    uint16_t u;
    std::memcpy(&u, &h, 2);
    return u;
#endif
}

// fp8 e4m3fn (OCP): no infinity, 0x7f is NaN, largest 448.
inline float fp8_to_float(uint8_t b) {
    const int exponent = (b >> 3) & 15, mantissa = b & 7;
    float f = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp((float)mantissa, -9);
    if ((b & 0x7f) == 0x7f) f = NAN;
    return b & 0x80 ? -f : f;
}
inline uint8_t float_to_fp8(float f) {  // nearest even, saturating
    const uint8_t sign = std::signbit(f) ? 0x80 : 0;
    f = std::fabs(f);
    if (f != f) return sign | 0x7f;
    if (f >= 448.0f) return sign | 0x7e;
    if (f < 0.015625f) return sign | (uint8_t)std::nearbyint(f * 512.0f);
    uint32_t u;
    std::memcpy(&u, &f, 4);
    u += 0x7ffff + ((u >> 20) & 1);
    return sign | (uint8_t)(((u >> 20) & 0x7ff) - (120 << 3));
}
struct Fp8Table {
    float value[256];
    Fp8Table() {
        for (int i = 0; i < 256; i++) value[i] = fp8_to_float((uint8_t)i);
    }
};
inline const float* fp8_table() {
    static const Fp8Table table;
    return table.value;
}

// n values of any type -> float, times scale (int8 and fp8 only); and back.
inline void read_row(const void* from, int type, float scale, float* to, int n) {
    int i = 0;
    switch (type) {
        case F32: std::memcpy(to, from, (size_t)n * 4); return;
        case BF16:
            for (; i + W <= n; i += W) store(to + i, load_bf16((const bf16*)from + i));
            for (; i < n; i++) to[i] = to_float(((const bf16*)from)[i]);
            return;
        case F16:
            for (; i < n; i++) to[i] = half_to_float(((const uint16_t*)from)[i]);
            return;
        case I8:
            for (; i < n; i++) to[i] = scale * ((const int8_t*)from)[i];
            return;
        default:
            for (const float* table = fp8_table(); i < n; i++) to[i] = scale * table[((const uint8_t*)from)[i]];
    }
}
inline void write_row(void* to, int type, const float* from, int n) {
    int i = 0;
    switch (type) {
        case F32: std::memcpy(to, from, (size_t)n * 4); return;
        case BF16:
            for (; i + W <= n; i += W) store_bf16((bf16*)to + i, load(from + i));
            for (; i < n; i++) ((bf16*)to)[i] = to_bf16(from[i]);
            return;
        default:
            for (; i < n; i++) ((uint16_t*)to)[i] = float_to_half(from[i]);
    }
}
// Quantises to int8 or fp8 with one scale for the row (largest value / 127 or / 448); returns the scale.
inline float write_quantized(void* to, int type, const float* from, int n) {
    float largest = 0;
    for (int i = 0; i < n; i++) largest = std::fmax(largest, std::fabs(from[i]));
    const float scale = largest > 0 ? largest / (type == I8 ? 127.0f : 448.0f) : 1.0f;
    const float inverse = 1.0f / scale;
    for (int i = 0; i < n; i++) {
        if (type == I8)
            ((int8_t*)to)[i] = (int8_t)std::nearbyint(from[i] * inverse);
        else
            ((uint8_t*)to)[i] = float_to_fp8(from[i] * inverse);
    }
    return scale;
}

// W values of type T (float or bf16) as float.
template <class T>
inline vf load_as(const T* p) {
    if constexpr (sizeof(T) == 4)
        return load(p);
    else
        return load_bf16(p);
}

// W x W values: to[i * to_stride + j] = from[j * from_stride + i].
inline void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(__AVX512F__)
    __m512 r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = (__m512)_mm512_unpacklo_pd((__m512d)t[i + j], (__m512d)t[i + j + 2]);
            r[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd((__m512d)t[i + j], (__m512d)t[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_ps(to + i * to_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
        _mm512_storeu_ps(to + (i + 8) * to_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
    }
#else
    for (int i = 0; i < W; i++)
        for (int j = 0; j < W; j++) to[i * to_stride + j] = from[j * from_stride + i];
#endif
}

}  // namespace llmrun
