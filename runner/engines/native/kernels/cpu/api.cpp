// What kernels/cpu.py calls, in C: pointers, sizes, and the structures of the headers field by field. No torch.
#include "decoder.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

using namespace llmrun;

namespace {

template <class F>
void for_rows(Pool* pool, int rows, const F& fn) {
    const int chunks = rows <= 4 ? 1 : std::min(rows, 4 * pool->active());
    pool->begin();
    pool->run(chunks, [&](int chunk, int) {
        const int end = (int64_t)rows * (chunk + 1) / chunks;
        for (int r = (int64_t)rows * chunk / chunks; r < end; r++) fn(r);
    });
    pool->end();
}
char* at(const void* base, int64_t elements, int type) { return (char*)base + elements * type_size(type); }

}  // namespace

extern "C" {

// Lanes of a vector, | 256 with vdpbf16ps, | 512 with AMX.
int llmrun_features() {
    int features = W;
#if defined(__AVX512BF16__)
    features |= 256;
#endif
    return has_tiles() ? features | 512 : features;
}

Pool* llmrun_pool_new(int threads, int spin_us) { return new Pool(threads, spin_us); }
void llmrun_pool_use(Pool* pool, int threads) { pool->set_active(threads); }

// Asks for huge pages for memory that is not touched yet: a step reads all weights, and each 4 KB page costs a TLB miss.
void llmrun_advise(void* memory, int64_t bytes) {
#if defined(__linux__)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
}

int64_t llmrun_packed_bytes(const Weight* w) { return num_panels(w->n, w->is_gated) * w->panel_bytes(); }

void llmrun_pack(Pool* pool, const void* from, int type, int64_t stride, const Weight* w) {
    const int panels = num_panels(w->n, w->is_gated);
    pool->begin();
    pool->run(panels, [&](int p, int) { pack_panel(from, type, stride, p, *w, (void*)w->panel(p)); });
    pool->end();
}

// The same for a quantised weight, whose scales need memory too.
int64_t llmrun_scale_bytes(const Weight* w) { return num_panels(w->n, w->is_gated) * (int64_t)w->groups() * 2 * NR * 4; }

void llmrun_pack_quantized(Pool* pool, const uint8_t* q, const float* scale, const float* zero, const Weight* w) {
    const int panels = num_panels(w->n, w->is_gated);
    pool->begin();
    pool->run(panels, [&](int p, int) { pack_quantized(q, scale, zero, p, *w); });
    pool->end();
}

// y [rows, n] = x W^T + b, both of w->type; x zero-padded to a multiple of 32 columns and rows. For tests and timings.
void llmrun_linear(Pool* pool, const Weight* w, int rows, const void* x, int64_t stride, float* y) {
    pool->begin();
    gemm(*pool, *w, rows, x, stride, [&](int row, int count, int p, const float* c) {
        for (int r = 0; r < count; r++)
            for (int i = 0; i < NR; i++) {
                const int column = panel_row(p, i, w->n, w->is_gated);
                if (column >= 0) y[(int64_t)(row + r) * w->n + column] = c[r * NR + i] + (w->bias ? w->bias[column] : 0);
            }
    });
    pool->end();
}

// out = rms_norm(x += delta); delta may be null.
void llmrun_rms_norm(Pool* pool, void* x, const void* delta, const float* weight, float eps, int rows, int n, int type,
                     void* out) {
    for_rows(pool, rows, [&](int r) {
        static thread_local std::vector<float> a, b;
        a.resize(n);
        read_row(at(x, (int64_t)r * n, type), type, 1.0f, a.data(), n);
        if (delta) {
            b.resize(n);
            read_row(at(delta, (int64_t)r * n, type), type, 1.0f, b.data(), n);
            for (int i = 0; i < n; i++) a[i] += b[i];
            write_row(at(x, (int64_t)r * n, type), type, a.data(), n);
            if (type != F32) read_row(at(x, (int64_t)r * n, type), type, 1.0f, a.data(), n);
        }
        rms_norm(a.data(), weight, eps, a.data(), n);
        write_row(at(out, (int64_t)r * n, type), type, a.data(), n);
    });
}

// out [rows, n] = act(left half) * right half of x [rows, 2 n].
void llmrun_gate(Pool* pool, const void* x, int rows, int n, int act, int type, void* out) {
    for_rows(pool, rows, [&](int r) {
        static thread_local std::vector<float> row;
        row.assign(2 * round_up(n, W), 0.0f);
        float *left = row.data(), *right = left + round_up(n, W);
        read_row(at(x, (int64_t)r * 2 * n, type), type, 1.0f, left, n);
        read_row(at(x, (int64_t)r * 2 * n + n, type), type, 1.0f, right, n);
        for (int i = 0; i < n; i += W) store(left + i, activate(load(left + i), act) * load(right + i));
        write_row(at(out, (int64_t)r * n, type), type, left, n);
    });
}

// qkv [tokens, heads + 2 kv_heads, dim] of `type`, stride elements a token, in place; factors [tokens, rope_dim].
void llmrun_rope_write(Pool* pool, void* qkv, int type, int64_t stride, int tokens, int heads, const Rope* rope,
                       const float* factors, const Cache* cache, const int64_t* slots) {
    const int n = (heads + 2 * cache->kv_heads) * cache->dim;
    for_rows(pool, tokens, [&](int r) {
        static thread_local std::vector<float> row;
        row.resize(n);
        read_row(at(qkv, r * stride, type), type, 1.0f, row.data(), n);
        rope->apply(row.data(), heads, *cache, factors + (int64_t)r * rope->rope_dim, slots ? slots[r] : 0, slots != nullptr);
        write_row(at(qkv, r * stride, type), type, row.data(), n);
    });
}

// k and v [tokens, kv_heads, dim] of `type`, stride elements a token.
void llmrun_write_cache(Pool* pool, const void* k, const void* v, int type, int64_t stride, int tokens, const Cache* cache,
                        const int64_t* slots) {
    for_rows(pool, tokens, [&](int r) {
        static thread_local std::vector<float> row;
        row.resize(cache->dim);
        for (int h = 0; h < cache->kv_heads; h++) {
            read_row(at(k, r * stride + h * cache->dim, type), type, 1.0f, row.data(), cache->dim);
            cache->write(cache->k, cache->k_scale, slots[r], h, row.data());
            read_row(at(v, r * stride + h * cache->dim, type), type, 1.0f, row.data(), cache->dim);
            cache->write(cache->v, cache->v_scale, slots[r], h, row.data());
        }
    });
}

void llmrun_attention(Pool* pool, const Attend* call, const Cache* cache, const Sequences* sequences) {
    const std::vector<Unit> units = make_units(*sequences, call->heads, cache->kv_heads);
    pool->begin();
    attend(*pool, *call, *cache, *sequences, units);
    pool->end();
}

Decoder* llmrun_decoder_new(const Model* model, Pool* pool) { return new Decoder(*model, *pool); }
void llmrun_decoder_free(Decoder* decoder) { delete decoder; }
void llmrun_decoder_step(Decoder* decoder, const Plan* plan, float* logits, float* hidden) {
    decoder->step(*plan, logits, hidden);
}
int llmrun_decoder_burst(Decoder* decoder, const Plan* plan, const Burst* burst, float* logits) {
    return decoder->burst(*plan, *burst, logits);
}
void llmrun_decoder_head(Decoder* decoder, const float* hidden, int rows, float* logits) {
    decoder->head(hidden, rows, logits);
}

}  // extern "C"
