// What happens to one row of activations: norms, gates, rotation. Rows are float32 here; callers convert.
#pragma once
#include "simd.h"

namespace llmrun {

enum Act { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4, QUICK_GELU = 5 };

inline vf verf(vf x) {  // Abramowitz and Stegun 7.1.26 is too coarse (1e-7 absolute is wanted), so lane by lane
    for (int i = 0; i < W; i++) x[i] = std::erf(x[i]);
    return x;
}
inline vf activate(vf x, int act) {
    switch (act) {
        case SILU: return x / (1.0f + vexp(-x));
        case GELU: return 0.5f * x * (1.0f + verf(x * 0.70710678118654752f));
        case GELU_TANH: return 0.5f * x * (1.0f + vtanh(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        case RELU: return x > 0.0f ? x : x - x;
        case RELU2: {
            const vf y = x > 0.0f ? x : x - x;
            return y * y;
        }
        default: return x / (1.0f + vexp(x * -1.702f));
    }
}

inline float dot(const float* a, const float* b, int n) {
    vf s = {};
    int i = 0;
    for (; i + W <= n; i += W) s += load(a + i) * load(b + i);
    float total = sum(s);
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}

// y = x / rms(x) * weight; y may be x.
inline void rms_norm(const float* x, const float* weight, float eps, float* y, int n) {
    const float factor = 1.0f / std::sqrt(dot(x, x, n) / n + eps);
    int i = 0;
    for (; i + W <= n; i += W) store(y + i, load(x + i) * factor * load(weight + i));
    for (; i < n; i++) y[i] = x[i] * factor * weight[i];
}
inline void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* y, int n) {
    double total = 0, squares = 0;
    for (int i = 0; i < n; i++) total += x[i];
    const float mean = (float)(total / n);
    for (int i = 0; i < n; i++) squares += (double)(x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / std::sqrt((float)(squares / n) + eps);
    for (int i = 0; i < n; i++) y[i] = (x[i] - mean) * factor * weight[i] + (bias ? bias[i] : 0.0f);
}

// Turns the leading `dim` channels; factors: dim/2 cosines, then sines (RoFormer, arXiv 2104.09864).
inline void rotate(float* head, const float* factors, int dim, bool is_interleaved) {
    const int half = dim / 2;
    const float *cosine = factors, *sine = factors + half;
    if (is_interleaved) {
        for (int i = 0; i < half; i++) {
            const float a = head[2 * i], b = head[2 * i + 1];
            head[2 * i] = a * cosine[i] - b * sine[i];
            head[2 * i + 1] = b * cosine[i] + a * sine[i];
        }
        return;
    }
    float *left = head, *right = head + half;
    int i = 0;
    for (; i + W <= half; i += W) {
        const vf a = load(left + i), b = load(right + i), c = load(cosine + i), s = load(sine + i);
        store(left + i, a * c - b * s);
        store(right + i, b * c + a * s);
    }
    for (; i < half; i++) {
        const float a = left[i], b = right[i];
        left[i] = a * cosine[i] - b * sine[i];
        right[i] = b * cosine[i] + a * sine[i];
    }
}

// One layer's K and V: [blocks * block_size, kv_heads, dim] of `type`; scales [blocks * block_size, kv_heads] or null.
struct Cache {
    void *k, *v;
    float *k_scale, *v_scale;
    int32_t type, block_size, kv_heads, dim;

    const char* row(const void* store, int64_t slot, int head) const {
        return (const char*)store + (slot * kv_heads + head) * dim * type_size(type);
    }
    void write(void* store, float* scales, int64_t slot, int head, const float* values) const {
        void* to = (void*)row(store, slot, head);
        if (type >= I8)
            scales[slot * kv_heads + head] = write_quantized(to, type, values, dim);
        else
            write_row(to, type, values, dim);
    }
};

// From a projection to attention: norm, turn, write. qkv is one token's [heads + 2 kv_heads, dim].
struct Rope {
    const float *q_norm, *k_norm;  // [dim] a head, or null
    float norm_eps;
    int32_t rope_dim;  // 0: not turned
    int32_t is_interleaved;

    void apply(float* qkv, int heads, const Cache& cache, const float* factors, int64_t slot, bool writes) const {
        const int dim = cache.dim, kv_heads = cache.kv_heads;
        for (int h = 0; h < heads + kv_heads; h++) {
            float* head = qkv + (int64_t)h * dim;
            const float* norm = h < heads ? q_norm : k_norm;
            if (norm) rms_norm(head, norm, norm_eps, head, dim);
            if (rope_dim) rotate(head, factors, rope_dim, is_interleaved);
            if (h >= heads && writes) {
                cache.write(cache.k, cache.k_scale, slot, h - heads, head);
                cache.write(cache.v, cache.v_scale, slot, h - heads, head + (int64_t)kv_heads * dim);
            }
        }
    }
};

}  // namespace llmrun
