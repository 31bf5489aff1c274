// A whole decoder step in one call: the five block shapes of spec.py, without experts and on one rank.
//
// The residual stays float32 whatever the weights are; what enters a matrix is rounded to the weights' type. In the last
// layer only the rows whose logits are wanted go on after attention.
#pragma once
#include <cstdlib>
#include <memory>

#include "attention.h"

namespace llmrun {

enum Block { SEQUENTIAL = 0, PARALLEL = 1, PARALLEL_TWO_NORMS = 2, POST_NORM = 3, SANDWICH = 4 };

struct Norm {
    const float *weight, *bias;  // weight null: no norm
};
struct Layer {
    Weight qkv, out, up, down;
    Norm norm1, norm2, norm1_post, norm2_post;
    Cache cache;
    Rope rope;
    const float* rope_table;          // [positions, rope_dim]
    const float *wide_q, *wide_k;     // norms over all heads of q and of k (OLMo-2), or null
    int32_t window, padding;
};
struct Model {
    const Layer* layers;
    Weight head;
    const void* embed;      // [vocab, hidden] of embed_type; null: the packed head
    const void* positions;  // learned, [rows, hidden] of embed_type, or null
    Norm embed_norm, norm;
    const float* slopes;
    int32_t num_layers, hidden, heads, kv_heads, dim, act, type, embed_type, position_offset;
    int32_t is_layer_norm, block, keeps_norm;
    float eps, scale, attn_softcap, clip, embed_scale, residual_scale, logit_scale, logit_softcap;
};
struct Plan {
    const int32_t *token_ids, *positions, *slots, *sample_rows;
    Sequences sequences;
    int32_t tokens, samples;
};
struct Burst {
    const int32_t* stop_ids;
    int32_t* token_ids;  // out: [max_steps, sequences]
    float* best;         // out: [sequences], the logits of the first step's tokens
    int32_t num_stop_ids, max_steps, limit_us;
};

// Zeroed, aligned, grown when a step has more rows than any before. Zeroed because padding is multiplied by zero weights.
class Rows {
   public:
    void fit(int rows, int columns, int size) {
        stride_ = round_up(columns, NR) + (columns > NR ? NR : 0);  // rows 4096 bytes apart would share cache lines' sets
        size_ = size;
        const size_t wanted = (size_t)round_up(rows, TILE_ROWS) * stride_ * size;
        if (wanted <= bytes_) return;
        data_.reset((char*)std::aligned_alloc(4096, (wanted + 4095) / 4096 * 4096));
        std::memset(data_.get(), 0, wanted);
        bytes_ = wanted;
    }
    template <class T = float>
    T* row(int r) const {
        return (T*)(data_.get() + (size_t)r * stride_ * size_);
    }
    int64_t stride() const { return stride_; }
    int size() const { return size_; }
    void keep(const int32_t* rows, int count) {  // ascending
        for (int i = 0; i < count; i++) std::memmove(row<char>(i), row<char>(rows[i]), (size_t)stride_ * size_);
    }

   private:
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    std::unique_ptr<char, Free> data_;
    size_t bytes_ = 0;
    int64_t stride_ = 0;
    int size_ = 4;
};

class Decoder {
   public:
    Decoder(const Model& model, Pool& pool) : m_(model), pool_(pool) {}

    // logits [samples, vocab], hidden [tokens, hidden] after the last norm; either may be null.
    void step(const Plan& plan, float* logits, float* hidden) {
        rows_ = plan.tokens;
        fit();
        pool_.begin();
        embed(plan);
        const std::vector<Unit> units = make_units(plan.sequences, m_.heads, m_.kv_heads);
        for (int i = 0; i < m_.num_layers; i++) {
            const bool is_last = i + 1 == m_.num_layers;
            run_layer(m_.layers[i], plan, units, is_last && !hidden);
        }
        if (hidden)
            for_rows([&](int r) { norm_row(m_.norm, x_.row(r), hidden + (int64_t)r * m_.hidden, F32); });
        else if (logits && rows_)
            finish(logits);
        pool_.end();
    }

    // Greedy decoding, up to max_steps tokens of each sequence: `plan` is the first step, of one token of each, and all
    // have room in the blocks that they hold. Ends with a step that makes a stop id, in time for the limit, and before
    // a step without usable logits, unless that is the first. Returns the number of steps; needs logits [sequences, vocab].
    int burst(const Plan& plan, const Burst& burst, float* logits) {
        using Clock = std::chrono::steady_clock;
        const auto began = Clock::now();
        const int count = plan.tokens;
        std::vector<int32_t> moving;
        for (const int32_t* values : {plan.token_ids, plan.positions, plan.slots, plan.sequences.context_lens})
            moving.insert(moving.end(), values, values + count);
        Plan next = plan;
        next.token_ids = moving.data();
        next.positions = next.token_ids + count;
        next.slots = next.positions + count;
        next.sequences.context_lens = next.slots + count;
        for (int done = 0;;) {
            step(next, logits, nullptr);
            int32_t* chosen = burst.token_ids + (int64_t)done * count;
            bool is_usable = true, is_last = false;
            for (int r = 0; r < count; r++) {
                const float* row = logits + (int64_t)r * m_.head.n;
                chosen[r] = argmax(row, m_.head.n);
                if (!done) burst.best[r] = row[chosen[r]];
                is_usable &= std::isfinite(row[chosen[r]]);
                is_last |= std::find(burst.stop_ids, burst.stop_ids + burst.num_stop_ids, chosen[r]) !=
                           burst.stop_ids + burst.num_stop_ids;
            }
            if (!is_usable) return std::max(done, 1);
            done++;
            const auto spent = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - began).count();
            if (is_last || done == burst.max_steps || spent * (done + 1) > (int64_t)burst.limit_us * done) return done;
            for (int r = 0; r < count; r++) moving[r] = chosen[r];
            for (int i = count; i < 4 * count; i++) moving[i]++;
        }
    }

    void head(const float* hidden, int rows, float* logits) {
        rows_ = rows;
        fit();
        pool_.begin();
        for_rows([&](int r) { write_row(normed_.row<char>(r), m_.type, hidden + (int64_t)r * m_.hidden, m_.hidden); });
        multiply_head(logits);
        pool_.end();
    }

   private:
    void fit() {
        const Layer& layer = m_.layers[0];
        const int size = type_size(m_.type);
        x_.fit(rows_, m_.hidden, 4);
        delta_.fit(rows_, m_.hidden, 4);
        qkv_.fit(rows_, layer.qkv.n, 4);
        normed_.fit(rows_, m_.hidden, size);
        normed2_.fit(rows_, m_.hidden, size);
        attended_.fit(rows_, layer.out.k, size);
        middle_.fit(rows_, layer.down.k, size);
    }

    template <class F>
    void for_rows(const F& fn) {
        const int chunks = rows_ <= 4 ? 1 : std::min(rows_, 4 * pool_.active());
        pool_.run(chunks, [&](int chunk, int) {
            const int end = (int64_t)rows_ * (chunk + 1) / chunks;
            for (int r = (int64_t)rows_ * chunk / chunks; r < end; r++) fn(r);
        });
    }

    void embed(const Plan& plan) {
        const int n = m_.hidden;
        for_rows([&](int r) {
            float* x = x_.row(r);
            const int64_t id = plan.token_ids[r];
            if (m_.embed)
                read_row((const char*)m_.embed + id * n * type_size(m_.embed_type), m_.embed_type, 1.0f, x, n);
            else
                unpack_row(m_.head, (int)id, x);
            if (m_.embed_scale != 1.0f)
                for (int i = 0; i < n; i++) x[i] *= m_.embed_scale;
            if (m_.positions) {
                float* row = delta_.row(r);
                const int64_t at = plan.positions[r] + m_.position_offset;
                read_row((const char*)m_.positions + at * n * type_size(m_.embed_type), m_.embed_type, 1.0f, row, n);
                for (int i = 0; i < n; i++) x[i] += row[i];
            }
            if (m_.embed_norm.weight) norm_row(m_.embed_norm, x, x, F32);
        });
    }

    void norm_row(const Norm& norm, const float* x, void* to, int type) const {
        static thread_local std::vector<float> row;
        row.resize(m_.hidden);
        float* y = type == F32 ? (float*)to : row.data();
        if (!norm.weight)
            std::memcpy(y, x, (size_t)m_.hidden * 4);
        else if (m_.is_layer_norm)
            layer_norm(x, norm.weight, norm.bias, m_.eps, y, m_.hidden);
        else
            rms_norm(x, norm.weight, m_.eps, y, m_.hidden);
        if (type != F32) write_row(to, type, y, m_.hidden);
    }

    void run_layer(const Layer& layer, const Plan& plan, const std::vector<Unit>& units, bool prunes) {
        for_rows([&](int r) {
            norm_row(m_.block == POST_NORM ? Norm{} : layer.norm1, x_.row(r), normed_.row<char>(r), m_.type);
            if (m_.block == PARALLEL_TWO_NORMS) norm_row(layer.norm2, x_.row(r), normed2_.row<char>(r), m_.type);
            if (m_.keeps_norm) norm_row(layer.norm1, x_.row(r), x_.row(r), F32);
        });
        project(layer, plan);
        const Attend call{qkv_.row(0), attended_.row<char>(0), qkv_.stride(), attended_.stride(), m_.slopes, m_.scale,
                          m_.attn_softcap, F32, m_.type, m_.heads, layer.window};
        attend(pool_, call, layer.cache, plan.sequences, units);
        if (prunes) prune(plan);
        if (!rows_) return;
        add(layer.out, attended_, m_.block == POST_NORM ? layer.norm1 : layer.norm1_post);
        const bool is_parallel = m_.block == PARALLEL || m_.block == PARALLEL_TWO_NORMS;
        if (!is_parallel)
            for_rows([&](int r) {
                norm_row(m_.block == POST_NORM ? Norm{} : layer.norm2, x_.row(r), normed_.row<char>(r), m_.type);
                if (m_.keeps_norm) norm_row(layer.norm2, x_.row(r), x_.row(r), F32);
            });
        feed(layer.up, m_.block == PARALLEL_TWO_NORMS ? normed2_ : normed_);
        add(layer.down, middle_, m_.block == POST_NORM ? layer.norm2 : layer.norm2_post);
    }

    void project(const Layer& layer, const Plan& plan) {
        const Weight& w = layer.qkv;
        multiply(w, normed_, [&](int r, int p, const float* c) {
            store_row(w, p, c, qkv_.row(r) + (int64_t)p * NR, [](vf v, vf) { return v; });
        });
        const int q_size = m_.heads * m_.dim, k_size = m_.kv_heads * m_.dim;
        for_rows([&](int r) {
            float* qkv = qkv_.row(r);
            if (m_.clip > 0)
                for (int i = 0; i < w.n; i++) qkv[i] = std::fmin(std::fmax(qkv[i], -m_.clip), m_.clip);
            if (layer.wide_q) {
                rms_norm(qkv, layer.wide_q, m_.eps, qkv, q_size);
                rms_norm(qkv + q_size, layer.wide_k, m_.eps, qkv + q_size, k_size);
            }
            const float* factors = layer.rope_table + (int64_t)plan.positions[r] * layer.rope.rope_dim;
            layer.rope.apply(qkv, m_.heads, layer.cache, factors, plan.slots[r], true);
        });
    }

    void prune(const Plan& plan) {
        if (plan.samples == rows_) return;
        for (Rows* rows : {&x_, &attended_, &normed_, &normed2_}) rows->keep(plan.sample_rows, plan.samples);
        rows_ = plan.samples;
    }

    // x += scale * (W a + b), through a norm where the block has one there.
    void add(const Weight& w, const Rows& a, const Norm& norm) {
        const float scale = m_.residual_scale;
        const bool has_norm = norm.weight && (m_.block == POST_NORM || m_.block == SANDWICH);
        Rows& to = has_norm ? delta_ : x_;
        multiply(w, a, [&](int r, int p, const float* c) {
            float* out = to.row(r) + (int64_t)p * NR;
            if (has_norm)
                store_row(w, p, c, out, [](vf v, vf) { return v; });
            else
                store_row(w, p, c, out, [scale](vf v, vf old) { return old + v * scale; });
        });
        if (!has_norm) return;
        for_rows([&](int r) {
            float *x = x_.row(r), *delta = delta_.row(r);
            norm_row(norm, delta, delta, F32);
            for (int i = 0; i < m_.hidden; i++) x[i] += scale * delta[i];
        });
    }

    // middle = act(W a + b), or act(gate) * up.
    void feed(const Weight& w, const Rows& a) {
        multiply(w, a, [&](int r, int p, const float* c) {
            const vf left = load(c) + bias(w, p, 0), right = load(c + W) + bias(w, p, 1);
            if (w.is_gated) {
                put(r, p * W, activate(left, m_.act) * right);
            } else {
                put(r, p * NR, activate(left, m_.act));
                put(r, p * NR + W, activate(right, m_.act));
            }
        });
    }
    void put(int r, int column, vf v) {
        if (m_.type == F32)
            store(middle_.row(r) + column, v);
        else
            store_bf16(middle_.row<bf16>(r) + column, v);
    }

    static vf bias(const Weight& w, int p, int half) {
        vf v = {};
        if (!w.bias) return v;
        for (int i = 0; i < W; i++) {
            const int row = panel_row(p, half * W + i, w.n, w.is_gated);
            if (row >= 0) v[i] = w.bias[row];
        }
        return v;
    }
    template <class F>
    static void store_row(const Weight& w, int p, const float* c, float* out, const F& join) {
        store(out, join(load(c) + bias(w, p, 0), load(out)));
        store(out + W, join(load(c + W) + bias(w, p, 1), load(out + W)));
    }

    template <class F>
    void multiply(const Weight& w, const Rows& a, const F& take) {
        gemm(pool_, w, rows_, a.row<char>(0), a.stride(), [&](int row, int rows, int p, const float* c) {
            for (int r = 0; r < rows; r++) take(row + r, p, c + r * NR);
        });
    }

    void finish(float* logits) {
        for_rows([&](int r) { norm_row(m_.norm, x_.row(r), normed_.row<char>(r), m_.type); });
        multiply_head(logits);
    }
    void multiply_head(float* logits) {
        const Weight& w = m_.head;
        multiply(w, normed_, [&](int r, int p, const float* c) {
            float* out = logits + (int64_t)r * w.n + p * NR;
            for (int half = 0; half < 2; half++) {
                vf v = (load(c + half * W) + bias(w, p, half)) * m_.logit_scale;
                if (m_.logit_softcap > 0) v = m_.logit_softcap * vtanh(v / m_.logit_softcap);
                const int left = std::min(W, w.n - p * NR - half * W);
                if (left > 0) std::memcpy(out + half * W, &v, (size_t)left * 4);
            }
        });
    }

    const Model m_;
    Pool& pool_;
    int rows_ = 0;
    Rows x_, delta_, qkv_, normed_, normed2_, attended_, middle_;
};

}  // namespace llmrun
